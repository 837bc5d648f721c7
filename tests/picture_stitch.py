"""The picture of explained variance by cost of training, from the recorded summary of a run, as SVG."""

from __future__ import annotations

import math
from typing import Any

WIDE, HIGH, LEFT, TOP = 300, 240, 46, 46
COLORS = {"random": "#666666", "transferred": "#1f77b4", "repaired": "#d95f02", "geometry": "#2a9d5c"}
DASHES = {"random": "6 3", "geometry": "2 2"}
LEAST = 0.4
"""Explained variance at the foot of the axis."""


def picture(stitch: dict[str, Any]) -> str:
    """A panel for each width, widths ascending; cost is logarithmic and begins at the first point after the start."""
    beginnings, thresholds = stitch["beginnings"], sorted({row["threshold"] for row in stitch["savings"]})
    widths = sorted(beginnings, key=int)
    size = f'width="{len(widths) * WIDE}" height="{TOP + HIGH + 20}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="16">Explained variance of the target by FLOPs of training (dense products)</text>',
    ]
    for number, (arm, color) in enumerate(COLORS.items()):
        x = LEFT + 110 * number
        parts.append(f'<path d="M{x} 30h24" {_stroke(arm)}/><text x="{x + 30}" y="34" fill="{color}">{arm}</text>')
    for number, width in enumerate(widths):
        parts += _panel(number * WIDE + LEFT, int(width), beginnings[width], thresholds)
    return "\n".join([*parts, "</svg>", ""])


def _stroke(arm: str) -> str:
    dash = f' stroke-dasharray="{DASHES[arm]}"' if arm in DASHES else ""
    return f'fill="none" stroke="{COLORS[arm]}" stroke-width="1.6"{dash}'


def _panel(left: int, width: int, arms: dict[str, Any], thresholds: list[float]) -> list[str]:
    costs = [row["flops"] for found in arms.values() for row in found["curve"] if row["flops"] > 0]
    low, high = math.log10(min(costs)), math.log10(max(costs))
    wide, high_ = WIDE - LEFT - 14, HIGH - 44

    def x(cost: float) -> float:
        return left + wide * (math.log10(cost) - low) / (high - low)

    def y(value: float) -> float:
        return TOP + 20 + high_ * (1 - (max(value, LEAST) - LEAST) / (1 - LEAST))

    parts = [f'<text x="{left}" y="{TOP + 12}" font-weight="bold">{width:,} features</text>']
    for value in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        parts.append(f'<path d="M{left} {y(value):.1f}h{wide}" stroke="#dddddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.1f}</text>')
    for value in thresholds:
        parts.append(f'<path d="M{left} {y(value):.1f}h{wide}" stroke="#999999" stroke-dasharray="1 3"/>')
    for power in range(math.ceil(low), math.floor(high) + 1):
        at = f'x="{x(10**power):.1f}" y="{TOP + 36 + high_}" text-anchor="middle"'
        parts.append(f'<path d="M{x(10**power):.1f} {TOP + 20}v{high_}" stroke="#dddddd"/><text {at}>1e{power}</text>')
    for arm, found in arms.items():
        rows = [row for row in found["curve"] if row["flops"] > 0 and row["explained_variance"] is not None]
        points = " ".join(f"{x(row['flops']):.1f},{y(row['explained_variance']):.1f}" for row in rows)
        parts.append(f'<polyline points="{points}" {_stroke(arm)}/>')
    return parts
