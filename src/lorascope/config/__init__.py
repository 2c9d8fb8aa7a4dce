"""The study file: read, checked against the schema, and turned into typed values.

Knows YAML, the schema of a study and how one trial's configuration is hashed. Does not know how a design becomes trials
(``design``), which modules a model has (``lora.targets``) or how data look (``data``). Floor: just above ``embedded``.
"""

from lorascope.config.designs import AblationDesign, GridDesign, ListDesign, Range, SearchDesign, ShapleyDesign
from lorascope.config.file import load_study, parse_duration, parse_memory, parse_override, validate
from lorascope.config.schema import (
    ALL_LINEAR,
    AdapterConfig,
    BaseModelConfig,
    DecodingConfig,
    EvaluateConfig,
    JudgeCheck,
    JudgeConfig,
    NLIClass,
    Section,
    TaskConfig,
    TaskType,
    TrackingConfig,
    TrainConfig,
)
from lorascope.config.study import (
    DEFAULT_SEEDS,
    SECTIONS,
    Study,
    TrialConfig,
    configuration_of,
    design_keys,
    in_layers,
    section_of,
    split_layers,
)

__all__ = [
    "ALL_LINEAR",
    "DEFAULT_SEEDS",
    "SECTIONS",
    "AblationDesign",
    "AdapterConfig",
    "BaseModelConfig",
    "DecodingConfig",
    "EvaluateConfig",
    "GridDesign",
    "JudgeCheck",
    "JudgeConfig",
    "ListDesign",
    "NLIClass",
    "Range",
    "SearchDesign",
    "Section",
    "ShapleyDesign",
    "Study",
    "TaskConfig",
    "TaskType",
    "TrackingConfig",
    "TrainConfig",
    "TrialConfig",
    "configuration_of",
    "design_keys",
    "in_layers",
    "load_study",
    "parse_duration",
    "parse_memory",
    "parse_override",
    "section_of",
    "split_layers",
    "validate",
]
