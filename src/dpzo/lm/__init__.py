"""Language models: loading, fixed-shape batches, per-example losses, isolation."""

from dpzo.lm.batching import Encoded
from dpzo.lm.encoder import EncoderClassifier
from dpzo.lm.encoding import encode_classes, encode_completions, encode_options
from dpzo.lm.fingerprint import fingerprint, fingerprint_tensors
from dpzo.lm.isolation import RowShape, check_isolation, choose_microbatch, synthetic_rows
from dpzo.lm.lora import LoraSettings
from dpzo.lm.models import LoadedModel, load_model, peek_architecture
from dpzo.lm.objectives import FeatureObjective, TokenObjective, UnitObjective, compute_features, group_units
from dpzo.lm.saving import load_saved, save

__all__ = [
    "Encoded",
    "EncoderClassifier",
    "FeatureObjective",
    "LoadedModel",
    "LoraSettings",
    "RowShape",
    "TokenObjective",
    "UnitObjective",
    "check_isolation",
    "choose_microbatch",
    "compute_features",
    "encode_classes",
    "encode_completions",
    "encode_options",
    "fingerprint",
    "fingerprint_tensors",
    "group_units",
    "load_model",
    "load_saved",
    "peek_architecture",
    "save",
    "synthetic_rows",
]
