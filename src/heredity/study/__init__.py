"""The study file: every setting, frozen and documented field by field, and the model graph that follows from it."""
# ruff: noqa: F401 (all of these are public)

from heredity.study.directions import DirectionConfig
from heredity.study.graph import Edge, Study, StudyError, load_study
from heredity.study.models import (
    DERIVED,
    ArchitectureConfig,
    Config,
    EditConfig,
    Init,
    Instrument,
    LoraConfig,
    MergeConfig,
    ModelConfig,
    Precision,
    PruneConfig,
    QuantizeConfig,
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
    ReadingConfig,
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
    ProbesConfig,
    ProbeSetConfig,
    SteeringConfig,
    StitchConfig,
)
