"""Every setting of a study: frozen, documented field by field, read from one TOML file. `Study` (study.py) adds the
relations between the tables; this package only says what may stand in each of them."""

from heredity.study.graph import Edge, Study, StudyError, load_study
from heredity.study.models import (
    ArchitectureConfig,
    LoraConfig,
    MergeConfig,
    ModelConfig,
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
    RepeatConfig,
    ReportConfig,
    SAEConfig,
    StudyConfig,
    TokenizerConfig,
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
from heredity.study.table import Config, Init, Precision

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
    "Edge",
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
    "Study",
    "StudyConfig",
    "StudyError",
    "TokenizerConfig",
    "TrainingConfig",
    "load_study",
]
