"""Regular expressions that others wrote, matched in a way that ends.

A pattern such as `(a+)+b` can take longer than anyone waits, and Python's `re` can be stopped by nothing but the end of
its process: so it gets a process of its own, which reads the texts and is ended when it takes too long.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from heredity.errors import short

SECONDS = 60.0  # that a pattern may take for all texts of a vocabulary; one of 150,000 tokens takes a fraction of one
_MATCH = """
import json, re, sys
asked = json.load(sys.stdin)
pattern = re.compile(asked["pattern"])
json.dump([pattern.fullmatch(text) is not None for text in asked["texts"]], sys.stdout)
"""


def matching(pattern: str, texts: Sequence[str], seconds: float = SECONDS) -> list[bool]:
    """Whether the whole of each text matches a pattern of Python's `re`.

    Raises ValueError, by pattern, for one that takes longer than `seconds`, or that is none.
    """
    asked = json.dumps({"pattern": pattern, "texts": list(texts)})
    command = [sys.executable, "-I", "-S", "-c", _MATCH]
    try:
        done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        reason = (
            f"does not end within {seconds:g} s on {len(texts):,} texts; write it without repetitions of repetitions"
        )
        raise ValueError(f"regex {short(pattern, 80)!r}: {reason}") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["ended without a word"])[-1]
        raise ValueError(f"regex {short(pattern, 80)!r}: cannot be matched ({short(reason)}); see Python's re")
    return json.loads(done.stdout)
