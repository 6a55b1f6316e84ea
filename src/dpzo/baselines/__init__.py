"""What private zeroth-order training is compared with. Nothing here carries dpzo's guarantee."""

from dpzo.baselines.cards import baseline_card
from dpzo.baselines.differentiable import DifferentiableObjective, Pass
from dpzo.baselines.first_order import AdamW, DpGradient
from dpzo.baselines.gradients import clipped_sums
from dpzo.baselines.lmo import LmoGradient
from dpzo.baselines.method import Method, Outcome
from dpzo.baselines.nonprivate import NonprivateZerothOrder, ZeroShot, train_without_privacy
from dpzo.baselines.vector_noise import VectorNoise

__all__ = [
    "AdamW",
    "DifferentiableObjective",
    "DpGradient",
    "LmoGradient",
    "Method",
    "NonprivateZerothOrder",
    "Outcome",
    "Pass",
    "VectorNoise",
    "ZeroShot",
    "baseline_card",
    "clipped_sums",
    "train_without_privacy",
]
