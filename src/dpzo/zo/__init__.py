"""The zeroth-order core: public directions, evaluation beside θ, estimators, updates. PyTorch only."""

from dpzo.zo.directions import KINDS, SCHEME, DirectionScheme, StepDirections, public_normal, public_uniform
from dpzo.zo.estimators import ESTIMATORS, Estimator, Objective, central_difference
from dpzo.zo.parameters import TrainableParameters
from dpzo.zo.schedules import SCHEDULES, Schedule
from dpzo.zo.shift import check_shift, shifted
from dpzo.zo.updates import UPDATES, Sgd, TailAverage, Update

__all__ = [
    "ESTIMATORS",
    "KINDS",
    "SCHEDULES",
    "SCHEME",
    "UPDATES",
    "DirectionScheme",
    "Estimator",
    "Objective",
    "Schedule",
    "Sgd",
    "StepDirections",
    "TailAverage",
    "TrainableParameters",
    "Update",
    "central_difference",
    "check_shift",
    "public_normal",
    "public_uniform",
    "shifted",
]
