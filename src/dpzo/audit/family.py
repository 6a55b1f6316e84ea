"""The f-DP estimator: the amounts of noise, in the plan's own family of mechanisms, that two error rates refute.

Under the claim the runs follow the plan's mechanism with noise of its scale. The family is that mechanism with r times
the noise. Error rates refute an r if they are below its trade-off curve, that is, if for some ε′
1 − FNR⁺ − e^{ε′}·FPR⁺ > δ_r(ε′), δ_r the accountant's curve. The least refuted r bounds the noise from above, and ε at
that noise is the lower bound. For a Gaussian on everyone the curve is Φ(Φ⁻¹(1 − α) − μ) and this is the bound on μ of
Nasr et al. (2023, "Tight auditing of differentially private machine learning"); for other plans it is their remark that
any family with a known curve can be used.

The assumption, which Clopper–Pearson does not need, is that the mechanism belongs to the family; r = 1 is not assumed.
So a flag (r < 1) contradicts the claimed curve itself. The bound uses the accountant: if the accountant is loose, so is
the ε of the refuted noise, and it is compared with an equally loose claim.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from dpzo.audit.bounds import Rates
from dpzo.noise.tabled import Tabled
from dpzo.privacy import ComposedEvent, Gaussian, Laplace, PrivacyPlan, accounting
from dpzo.privacy.accounting import curves

GRAIN = 1.005  # amounts of noise, in units of the claimed, are powers of this
LEAST, MOST = -280, 1400  # range of the exponents: a quarter of the claimed noise to a thousand times
ROUGHLY = 8  # exponents apart, where a rough answer will do
ANGLES = np.concatenate([[0.0], np.geomspace(1e-4, 24.0, 140)])  # the ε′ at which curves are compared


class NoiseFamily:
    """`plan`'s mechanism with r times its noise; what is audited are transcripts of `audited_steps` ≤ T steps.

    Laplace noise on several coordinates counts as on one: for neighbours that differ in one coordinate the curve is
    exact, and for those that differ equally in all it is above (tests/audit/test_bounds.py compares the curves).
    """

    def __init__(self, plan: PrivacyPlan, audited_steps: int) -> None:
        self.plan = plan
        self.steps = audited_steps
        self._curves: dict[float, npt.NDArray[np.float64]] = {}

    @staticmethod
    def exists(plan: PrivacyPlan) -> bool:
        """Whether the mechanism has a scale to vary; a noise table has none."""
        return not isinstance(plan.mechanism, Tabled)

    def _event(self, noise: float, steps: int) -> ComposedEvent:
        mechanism = self.plan.mechanism
        assert isinstance(mechanism, Gaussian | Laplace)
        return ComposedEvent(self.plan.sampler.event(replace(mechanism, scale=mechanism.scale * noise).event(1)), steps)

    def _curve(self, noise: float) -> npt.NDArray[np.float64]:
        if noise not in self._curves:
            event, relation = self._event(noise, self.steps), self.plan.relation
            self._curves[noise] = curves.delta_curve(event, ANGLES, relation)
        return self._curves[noise]

    def margins(self, found: Rates, noise: float) -> npt.NDArray[np.float64]:
        """How far each pair of rates is below the curve of `noise`: positive if it refutes that noise."""
        curve, growth = self._curve(noise), np.exp(ANGLES)
        a, b = np.atleast_1d(found.false_positive)[:, None], np.atleast_1d(found.false_negative)[:, None]
        gaps = np.maximum(1.0 - b - growth * a - curve, 1.0 - a - growth * b - curve)
        return np.asarray(gaps.max(axis=1))

    def least_refuted(self, found: Rates, *, roughly: bool = False) -> float:
        """The least noise (in units of the claimed) that any of the rates refutes, up to a grain to the safe side.

        ∞ where none is refuted, a quarter where all are.
        """

        def refuted(exponent: int) -> bool:
            return bool(self.margins(found, GRAIN**exponent).max() > 0.0)

        low = high = 0
        step = ROUGHLY
        if refuted(0):
            while refuted(low):
                if low == LEAST:
                    return GRAIN**LEAST
                low, high, step = max(low - step, LEAST), low, 2 * step
        else:
            while not refuted(high):
                if high == MOST:
                    return math.inf
                low, high, step = high, min(high + step, MOST), 2 * step
        while high - low > (ROUGHLY if roughly else 1):
            middle = (low + high) // 2
            low, high = (low, middle) if refuted(middle) else (middle, high)
        return GRAIN**high

    def epsilon(self, noise: float) -> float:
        """ε of all T steps at δ, with `noise` times the claimed noise; 0 at infinite noise."""
        if not math.isfinite(noise):
            return 0.0
        return accounting.epsilon(self._event(noise, self.plan.steps), self.plan.delta, self.plan.relation)
