"""Every setting of a study: frozen, documented field by field, read from one TOML file. `Study` (study.py) adds the
relations between the tables; this package only says what may stand in each of them."""

from heredity.config.models import (
    ArchitectureConfig,
    LoraConfig,
    MergeConfig,
    ModelConfig,
    ScratchConfig,
    TrainingConfig,
)
from heredity.config.stitch import (
    AdamConfig,
    Arm,
    CarriedFeaturesConfig,
    HubTaskConfig,
    ProbesConfig,
    SteeringConfig,
    StitchConfig,
)
from heredity.config.study import (
    RANKED,
    CaseConfig,
    ControlsConfig,
    CorpusConfig,
    EvaluationConfig,
    ExplainConfig,
    LineageConfig,
    RepeatConfig,
    ReportConfig,
    SAEConfig,
    StudyConfig,
    TokenizerConfig,
)
from heredity.config.table import Config, Init, Precision

__all__ = [
    "RANKED",
    "AdamConfig",
    "ArchitectureConfig",
    "Arm",
    "CarriedFeaturesConfig",
    "CaseConfig",
    "Config",
    "ControlsConfig",
    "CorpusConfig",
    "EvaluationConfig",
    "ExplainConfig",
    "HubTaskConfig",
    "Init",
    "LineageConfig",
    "LoraConfig",
    "MergeConfig",
    "ModelConfig",
    "Precision",
    "ProbesConfig",
    "RepeatConfig",
    "ReportConfig",
    "SAEConfig",
    "ScratchConfig",
    "SteeringConfig",
    "StitchConfig",
    "StudyConfig",
    "TokenizerConfig",
    "TrainingConfig",
]
