"""Which learned features did the child model inherit, which did it lose, which are new, and how sure are we?

The names below are the public ones. Each is imported when it is first used, so that `import heredity` loads neither
torch nor anything else that is heavy.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

_HOMES = {
    "ActivationStore": "activations",
    "BlockSampler": "data.tokens",
    "FeatureActs": "features.acts",
    "Fates": "features.lineage",
    "Flow": "features.lineage",
    "Matches": "features.correlate",
    "PackedTokens": "data.tokens",
    "SAE": "sae.model",
    "Store": "artifacts",
    "Study": "study",
    "Summary": "report.summary",
    "capture": "hooks",
    "collect": "features.collect",
    "correlate": "features.correlate",
    "curve": "features.lineage",
    "evaluate": "lm.evaluate",
    "family": "features.families",
    "fates": "features.lineage",
    "floor": "features.controls",
    "flow": "features.lineage",
    "llr": "features.hypothesis",
    "load_model": "lm.load",
    "load_study": "study",
    "merge_states": "lm.merge",
    "read_sae": "sae.formats",
    "replaced": "hooks",
    "run": "engine",
    "slerp": "lm.merge",
    "stages_of": "stages",
    "sweep": "lm.sweep",
    "write_sae": "sae.formats",
}

__all__ = [
    "ActivationStore",
    "BlockSampler",
    "Fates",
    "FeatureActs",
    "Flow",
    "Matches",
    "PackedTokens",
    "SAE",
    "Store",
    "Study",
    "Summary",
    "__version__",
    "capture",
    "collect",
    "correlate",
    "curve",
    "evaluate",
    "family",
    "fates",
    "floor",
    "flow",
    "llr",
    "load_model",
    "load_study",
    "merge_states",
    "read_sae",
    "replaced",
    "run",
    "slerp",
    "stages_of",
    "sweep",
    "write_sae",
]

try:
    __version__ = version("heredity")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0"


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'heredity' has no attribute {name!r}")
    return getattr(import_module(f"heredity.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
