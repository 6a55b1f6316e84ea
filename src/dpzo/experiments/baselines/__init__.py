"""Baselines for private zeroth-order training. None of them has dpzo's guarantee."""

from dpzo.experiments.baselines.cards import baseline_card
from dpzo.experiments.baselines.differentiable import DifferentiableObjective, Pass
from dpzo.experiments.baselines.first_order import AdamW, DpGradient
from dpzo.experiments.baselines.gradients import clipped_sums
from dpzo.experiments.baselines.lmo import LmoGradient
from dpzo.experiments.baselines.method import Method, Outcome
from dpzo.experiments.baselines.nonprivate import NonprivateZerothOrder, ZeroShot, train_without_privacy
from dpzo.experiments.baselines.vector_noise import VectorNoise

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
