"""Which learned features did the child model inherit, which did it lose, which are new, and how sure are we?

The names below are the public ones. Each is imported when it is first used, so that `import heredity` loads neither
torch nor anything else that is heavy.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heredity.analyses import stages_of as stages_of
    from heredity.engine.stage import run as run
    from heredity.engine.store import Store as Store
    from heredity.features.acts import FeatureActs as FeatureActs
    from heredity.features.collect import collect as collect
    from heredity.features.correlate import Matches as Matches
    from heredity.features.correlate import correlate as correlate
    from heredity.features.correlate import join_matches as join_matches
    from heredity.features.families import family as family
    from heredity.features.fates import Fates as Fates
    from heredity.features.fates import Flow as Flow
    from heredity.features.fates import curve as curve
    from heredity.features.fates import fates as fates
    from heredity.features.fates import flow as flow
    from heredity.features.hypothesis import llr as llr
    from heredity.features.null import floor as floor
    from heredity.lm.activations import ActivationStore as ActivationStore
    from heredity.lm.evaluate import evaluate as evaluate
    from heredity.lm.hooks import capture as capture
    from heredity.lm.hooks import replaced as replaced
    from heredity.lm.load import load_model as load_model
    from heredity.lm.merge import merge_states as merge_states
    from heredity.lm.merge import slerp as slerp
    from heredity.lm.sweep import sweep as sweep
    from heredity.results import Run as Run
    from heredity.results import open as open
    from heredity.sae.formats import read_sae as read_sae
    from heredity.sae.formats import write_sae as write_sae
    from heredity.sae.model import SAE as SAE
    from heredity.study import Study as Study
    from heredity.study import load_study as load_study
    from heredity.text.tokens import BlockSampler as BlockSampler
    from heredity.text.tokens import PackedTokens as PackedTokens
    from heredity.two_models import EdgeResult as EdgeResult
    from heredity.two_models import StitchResult as StitchResult
    from heredity.two_models import compare as compare
    from heredity.two_models import fit_stitch as fit_stitch

_HOMES = {
    "ActivationStore": "lm.activations",
    "BlockSampler": "text.tokens",
    "EdgeResult": "two_models",
    "Fates": "features.fates",
    "FeatureActs": "features.acts",
    "Flow": "features.fates",
    "Matches": "features.correlate",
    "PackedTokens": "text.tokens",
    "Run": "results",
    "SAE": "sae.model",
    "StitchResult": "two_models",
    "Store": "engine.store",
    "Study": "study",
    "capture": "lm.hooks",
    "collect": "features.collect",
    "compare": "two_models",
    "correlate": "features.correlate",
    "curve": "features.fates",
    "evaluate": "lm.evaluate",
    "family": "features.families",
    "fates": "features.fates",
    "fit_stitch": "two_models",
    "floor": "features.null",
    "flow": "features.fates",
    "join_matches": "features.correlate",
    "llr": "features.hypothesis",
    "load_model": "lm.load",
    "load_study": "study",
    "merge_states": "lm.merge",
    "open": "results",
    "read_sae": "sae.formats",
    "replaced": "lm.hooks",
    "run": "engine.stage",
    "slerp": "lm.merge",
    "stages_of": "analyses",
    "sweep": "lm.sweep",
    "write_sae": "sae.formats",
}

__all__ = [
    "ActivationStore",
    "BlockSampler",
    "EdgeResult",
    "Fates",
    "FeatureActs",
    "Flow",
    "Matches",
    "PackedTokens",
    "Run",
    "SAE",
    "StitchResult",
    "Store",
    "Study",
    "__version__",
    "capture",
    "collect",
    "compare",
    "correlate",
    "curve",
    "evaluate",
    "family",
    "fates",
    "fit_stitch",
    "floor",
    "flow",
    "join_matches",
    "llr",
    "load_model",
    "load_study",
    "merge_states",
    "open",
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
