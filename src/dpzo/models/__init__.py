"""Language models: loading, fixed-shape batches, per-example losses, isolation."""

from dpzo.models.adapters import ADAPTERS, LoraSettings
from dpzo.models.batching import Encoded
from dpzo.models.encoder import EncoderClassifier
from dpzo.models.encoding import encode_classes, encode_completions, encode_options
from dpzo.models.eval_batch_choice import Work, settle_variants
from dpzo.models.fingerprint import fingerprint, fingerprint_tensors
from dpzo.models.frozen_cache import Keep
from dpzo.models.initialiser import seeded_initialiser
from dpzo.models.isolation import RowShape
from dpzo.models.masking import encode_masked, template_pieces
from dpzo.models.measures import MEASURES, Measure, check_measure
from dpzo.models.memory import evaluation_memory, kept_memory
from dpzo.models.models import LoadedModel, load_model, peek_architecture
from dpzo.models.objectives import FeatureObjective, TokenObjective
from dpzo.models.saving import load_saved, save
from dpzo.models.shapes import Shapes, isolated_shapes, make_objective, settle_shift, synthetic_objective
from dpzo.models.storage import Storage
from dpzo.models.units import UnitObjective, group_units

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
