"""Choose the attack and its threshold, on draws that are not counted afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dpzo.audit.attacks import Attack
from dpzo.audit.bounds import Rates, Scores, candidates, clopper_pearson_epsilon, rates
from dpzo.audit.family import NoiseFamily

# Error probabilities that are tried in turn, in units of the allowed one, each with what must be refuted to stop:
# of noise, five times the claimed; of counts, anything. The last ones are for few draws, for which no bound with so
# small an error probability refutes anything.
LAST = ((1.0, 0.0), (10.0, 0.0), (35.0, 0.0), (1e3, 0.0), (1e5, 0.0))
FOR_NOISE = ((1e-4, 0.2), (0.01, 0.2), *LAST)
FOR_COUNTS = ((0.01, 0.0), *LAST)
MOST_CHANCE = 0.9

Judge = Callable[[Rates], tuple[float, int]]
"""From bounds at many thresholds to how much the best of them refutes (0: nothing), and which it is."""


@dataclass(frozen=True)
class Trial:
    """An attack, and scores of some runs without and with the canary."""

    attack: Attack
    absent: Scores
    present: Scores


def by_epsilon(delta: float) -> Judge:
    """The threshold whose Clopper–Pearson ε is largest."""

    def judge(found: Rates) -> tuple[float, int]:
        epsilons = clopper_pearson_epsilon(found, delta)
        best = int(np.argmax(epsilons))
        return float(epsilons[best]), best

    return judge


def by_noise(family: NoiseFamily) -> Judge:
    """The threshold that refutes the least noise."""

    def judge(found: Rates) -> tuple[float, int]:
        noise = family.least_refuted(found, roughly=True)
        if not np.isfinite(noise):
            return 0.0, 0
        return 1.0 / noise, int(np.argmax(family.margins(found, noise)))

    return judge


def choose(
    trials: Sequence[Trial], judge: Judge, miss: float, cautions: Sequence[tuple[float, float]]
) -> tuple[Attack, float]:
    """The attack and threshold that refute most.

    The best of many bounds is partly due to chance, least among cautious ones: so `cautions` are tried in turn, and
    the first that refutes enough decides. (By simulation, Gaussian at ε = 1 and 5000 runs to choose by: the worst of 25
    bounds was 0.79 of the claim, 0.49 when bounds at the reported confidence decided.)
    """
    for caution, enough in cautions:
        options = []
        for trial in trials:
            thresholds = candidates(trial.absent, trial.present)
            strength, best = judge(rates(trial.absent, trial.present, thresholds, min(MOST_CHANCE, miss * caution)))
            options.append((strength, trial.attack, float(thresholds[best])))
        strength, attack, threshold = max(options, key=lambda option: option[0])
        if strength > enough:
            return attack, threshold
    return trials[0].attack, float(np.median(trials[0].present))
