"""Language models: loading, fixed-shape batches, per-example losses, isolation."""

from dpzo.lm.adapters import ADAPTERS, LoraSettings
from dpzo.lm.batching import Encoded
from dpzo.lm.encoder import EncoderClassifier
from dpzo.lm.encoding import encode_classes, encode_completions, encode_options
from dpzo.lm.fingerprint import fingerprint, fingerprint_tensors
from dpzo.lm.initialiser import seeded_initialiser
from dpzo.lm.isolation import RowShape
from dpzo.lm.masking import encode_masked, template_pieces
from dpzo.lm.measures import MEASURES, Measure, check_measure
from dpzo.lm.memory import evaluation_memory, kept_memory
from dpzo.lm.models import LoadedModel, load_model, peek_architecture
from dpzo.lm.objectives import FeatureObjective, TokenObjective
from dpzo.lm.prefix import Keep
from dpzo.lm.prepare import Shapes, isolated_shapes, make_objective, settle_shift, synthetic_objective
from dpzo.lm.saving import load_saved, save
from dpzo.lm.storage import Storage
from dpzo.lm.units import UnitObjective, group_units
from dpzo.lm.variant_choice import Work, settle_variants

__all__ = [
    "ADAPTERS",
    "MEASURES",
    "Encoded",
    "EncoderClassifier",
    "FeatureObjective",
    "Keep",
    "LoadedModel",
    "LoraSettings",
    "Measure",
    "RowShape",
    "Shapes",
    "Storage",
    "TokenObjective",
    "UnitObjective",
    "Work",
    "check_measure",
    "encode_classes",
    "encode_completions",
    "encode_masked",
    "encode_options",
    "evaluation_memory",
    "fingerprint",
    "fingerprint_tensors",
    "group_units",
    "isolated_shapes",
    "kept_memory",
    "load_model",
    "load_saved",
    "make_objective",
    "peek_architecture",
    "save",
    "seeded_initialiser",
    "settle_shift",
    "settle_variants",
    "synthetic_objective",
    "template_pieces",
]
