"""The study file: every setting, frozen and documented field by field, and the model graph that follows from it."""

from heredity.study.graph import Edge, Study, StudyError, load_study
from heredity.study.models import (
    ArchitectureConfig,
    Config,
    Init,
    LoraConfig,
    MergeConfig,
    ModelConfig,
    Precision,
    ScratchConfig,
    TrainingConfig,
)
from heredity.study.settings import (
    RANKED,
    CaseConfig,
    ControlsConfig,
    CorpusConfig,
    EvaluationConfig,
    ExplainConfig,
    LineageConfig,
    ReferencesConfig,
    RepeatConfig,
    ReportConfig,
    SAEConfig,
    StudyConfig,
    TokenizerConfig,
    VerdictsConfig,
)
from heredity.study.stitch import (
    AdamConfig,
    Arm,
    CarriedFeaturesConfig,
    HubTaskConfig,
    ProbesConfig,
    SteeringConfig,
    StitchConfig,
)

__all__ = ["RANKED", "AdamConfig", "ArchitectureConfig", "Arm", "CarriedFeaturesConfig", "CaseConfig", "Config"]
__all__ += ["ControlsConfig", "CorpusConfig", "Edge", "EvaluationConfig", "ExplainConfig", "HubTaskConfig", "Init"]
__all__ += ["LineageConfig", "LoraConfig", "MergeConfig", "ModelConfig", "Precision", "ProbesConfig", "RepeatConfig"]
__all__ += [
    "ReferencesConfig",
    "ReportConfig",
    "SAEConfig",
    "ScratchConfig",
    "SteeringConfig",
    "StitchConfig",
    "Study",
    "StudyConfig",
]
__all__ += ["StudyError", "TokenizerConfig", "TrainingConfig", "VerdictsConfig", "load_study"]
