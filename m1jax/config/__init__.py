"""A run as one object: frozen dataclasses (schema.py), read from an ml_collections file (file.py)."""

from m1jax.config.checks import check_model, check_run
from m1jax.config.schema import (
    CLIP_POLICIES,
    DTYPES,
    LAYER_KINDS,
    ClipConfig,
    DataConfig,
    HardwareConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SpecialIdsConfig,
    TrainConfig,
    VocabPartConfig,
    to_dict,
)
from m1jax.config.stages import LearningRateConfig, RampConfig, StageConfig, blend, easy_first
from m1jax.config.timeline import Timeline

__all__ = [
    "CLIP_POLICIES",
    "DTYPES",
    "LAYER_KINDS",
    "ClipConfig",
    "DataConfig",
    "HardwareConfig",
    "LearningRateConfig",
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RampConfig",
    "RunConfig",
    "SpecialIdsConfig",
    "StageConfig",
    "Timeline",
    "TrainConfig",
    "VocabPartConfig",
    "blend",
    "check_model",
    "check_run",
    "easy_first",
    "to_dict",
]
