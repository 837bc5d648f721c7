"""What single features of a stitch keep, and its edge, with figures of the size that runs give."""

from __future__ import annotations

import math

from heredity.report.bridge import AgreementSummary, BridgeSummary, ComparedSummary
from heredity.report.kept import (
    AttributionSummary,
    ClassSummary,
    DeactivationFeature,
    DeactivationSummary,
    EntropyFeature,
    EntropySummary,
    HeadSummary,
    KeptSummary,
    RankTestSummary,
    SplitSummary,
    SpreadSummary,
)


def _spread(n: int, center: float, width: float) -> SpreadSummary:
    weights = [math.exp(-(((-0.975 + bin_ / 20) - center) ** 2) / (2 * width**2)) for bin_ in range(40)]
    low, lower, middle, upper, high = (max(-1.0, min(1.0, center + width * z)) for z in (-1.64, -0.67, 0, 0.67, 1.64))
    return SpreadSummary(
        n=n, quantiles=(low, lower, middle, upper, high), histogram=tuple(round(n * w / sum(weights)) for w in weights)
    )


def kept() -> KeptSummary:
    """Every part of what single features keep."""

    def group(features: int, center: float, density: float) -> ClassSummary:
        correlations = _spread(features - 4, center, 0.18)
        return ClassSummary(
            features=features, silent=4, density=density, attribution=correlations, activation=correlations
        )

    def head(drop: float) -> HeadSummary:
        return HeadSummary(
            layer=1, head=3, score=0.82, tokens=640, attention=0.55, attention_drop=drop, norm=2.1, norm_drop=-0.3
        )

    test = RankTestSummary(p=0.0002, effect=0.63, interval=(0.58, 0.68))
    return KeptSummary(
        d_sae=2048,
        judged=1711,
        tokens=50_000,
        activation=_spread(1711, 0.68, 0.2),
        attribution=AttributionSummary(
            tokens=50_000,
            trained=_spread(1700, 0.6, 0.25),
            random=_spread(1900, 0.12, 0.1),
            k=32,
            cut=0.284,
            above=0.87,
            negative=0.021,
        ),
        split=SplitSummary(
            corpus="english",
            prompts=200,
            versions=6,
            unchanged=3,
            neither=105,
            structural=group(300, 0.74, 0.031),
            semantic=group(1306, 0.55, 0.004),
            tests={"attribution": test, "activation": test, "density": test},
        ),
        entropy=EntropySummary(
            source=(0.05, 0.1, 0.14, 0.2, 0.33),
            target=(0.04, 0.09, 0.13, 0.18, 0.31),
            by_chance=(0.15, 0.14),
            dimensions=(3, 5),
            rank=0.44,
            features=(EntropyFeature(feature=77, share=0.61, carried=0.48, push=9.5, carried_push=8.1),),
        ),
        deactivation=DeactivationSummary(
            first="bos",
            rank=0.31,
            features=(DeactivationFeature(feature=1203, source=head(0.21), target=head(0.1)),),
        ),
        reasons={},
    )


def bridge() -> BridgeSummary:
    """An edge that is a stitch too."""

    def agreement(persisting: int) -> AgreementSummary:
        return AgreementSummary(
            persisting=persisting,
            both=persisting - 20,
            only=20,
            only_matched=240,
            neither=600,
            kappa=0.71,
            rank=0.83,
            median=0.62,
        )

    return BridgeSummary(
        edge="small->large",
        compared=ComparedSummary(
            hook_point="blocks.1.hook_resid_pre",
            threshold=0.52,
            tokens=50_000,
            live=2000,
            matched=1380,
            one_sae=True,
            carried=agreement(1160),
            unchanged=agreement(1311),
            parent_explained_variance=0.91,
            carried_explained_variance=0.74,
            unchanged_explained_variance=0.79,
        ),
    )
