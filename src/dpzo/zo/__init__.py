"""The zeroth-order core: public directions, evaluation at shifted weights, estimators, updates. Needs only PyTorch."""

from dpzo.zo.averaging import ExponentialAverage, ExponentialMean, TailAverage, TailMean
from dpzo.zo.directions import (
    KINDS,
    SCHEME,
    DirectionScheme,
    StepDirections,
    Structure,
)
from dpzo.zo.estimators import (
    ESTIMATORS,
    Estimator,
    Objective,
    VariantObjective,
    central_difference,
    evaluations,
    forward_difference,
    is_own,
    is_padded,
)
from dpzo.zo.exceptions import ExceptionSafeEstimator
from dpzo.zo.initial import public_normal, public_uniform
from dpzo.zo.moments import Adam, Momentum
from dpzo.zo.parameters import TrainableParameters
from dpzo.zo.rules import UPDATES, RuleSettings, build_update, update_facts
from dpzo.zo.schedules import SCHEDULES, Schedule
from dpzo.zo.shaping import Shrinkage, SignRelease
from dpzo.zo.shift import shifted
from dpzo.zo.shift_check import check_shift
from dpzo.zo.stack import Weights, stacked
from dpzo.zo.structures import LowRank, PublicBasis, RandomMask, direction_scheme, load_basis, public_basis
from dpzo.zo.updates import Sgd, State, Update

__all__ = [
    "ESTIMATORS",
    "KINDS",
    "SCHEDULES",
    "SCHEME",
    "UPDATES",
    "Adam",
    "DirectionScheme",
    "Estimator",
    "ExceptionSafeEstimator",
    "ExponentialAverage",
    "ExponentialMean",
    "LowRank",
    "Momentum",
    "Objective",
    "PublicBasis",
    "RandomMask",
    "RuleSettings",
    "Schedule",
    "Sgd",
    "Shrinkage",
    "SignRelease",
    "State",
    "StepDirections",
    "Structure",
    "TailAverage",
    "TailMean",
    "TrainableParameters",
    "Update",
    "VariantObjective",
    "Weights",
    "build_update",
    "central_difference",
    "check_shift",
    "direction_scheme",
    "evaluations",
    "forward_difference",
    "is_own",
    "is_padded",
    "load_basis",
    "public_basis",
    "public_normal",
    "public_uniform",
    "shifted",
    "stacked",
    "update_facts",
]
