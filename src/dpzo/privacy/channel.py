"""The privacy channel: takes private rows and releases one noisy integer vector per step, at most T times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpzo.privacy.mechanisms import clip_rows, lattice
from dpzo.privacy.plan import PrivacyPlan
from dpzo.privacy.randomness import Randomness, SecretRandom


class BudgetExhausted(RuntimeError):
    """The plan's releases are spent; the channel makes no further release."""


@dataclass(frozen=True)
class Release:
    """The public result of one step: Σ clipped rows + noise. Safe to publish.

    Args:
        step: The step, from 0.
        values: K integers, in lattice units.
        unit: Slope per lattice unit."""

    step: int
    values: tuple[int, ...]
    unit: float

    def slopes(self) -> npt.NDArray[np.float64]:
        """The released sums in slope units, float64 (K,): values × unit, one rounding each."""
        return np.array([float(value) for value in self.values]) * self.unit


class PrivateChannel:
    """Draw each step's batch and release its noisy sum, alternately, at most `plan.steps` times.

    Guarantee: the sequence of releases of one channel (together with public data) is (plan.epsilon, plan.delta)-DP
    under plan.relation, for every choice of the rows, adaptive ones included, provided that row i of a step depends on
    unit i's data and on public values alone.

    Args:
        plan: The privacy plan.
        spent: Steps already spent by an earlier process.
        step_key: Maps a step to 32 bytes of entropy for that step alone, or None. It makes a step repeatable: a process
            with the key of a step whose release was never published makes that release with the same batch and noise.
        nonprivate_randomness: For tests: maps a step to a source of words. `has_guarantee` is then False, and
            everything built on the channel must say so.
    """

    def __init__(
        self,
        plan: PrivacyPlan,
        *,
        spent: int = 0,
        step_key: Callable[[int], bytes | None] = lambda step: None,
        nonprivate_randomness: Callable[[int], Randomness] | None = None,
    ) -> None:
        self.plan = plan
        self.has_guarantee = nonprivate_randomness is None
        self._source_at = nonprivate_randomness or (lambda step: SecretRandom(step_key(step)))
        self._lattice = lattice(plan.mechanism, plan.clip_norm, plan.num_directions)
        self._step = spent
        self._batch_size: int | None = None
        self._source: Randomness = SecretRandom()

    @property
    def spent(self) -> int:
        """Releases done so far, burnt steps included."""
        return self._step

    def draw_batch(self, num_units: int) -> npt.NDArray[np.int64]:
        """Draw the units of the next step's batch. Call this once per step.

        Args:
            num_units: The number of privacy units in the data.

        Returns:
            Indices in 0..num_units−1, ascending, int64, shape (batch,). Secret.

        Raises:
            BudgetExhausted: if all T releases are spent.
            ValueError: if the step's batch is already drawn.
        """
        self._refuse_when_spent()
        if self._batch_size is not None:
            raise ValueError("this step's batch is drawn: a second draw would choose among batches")
        self._source = self._source_at(self._step)
        batch = self.plan.sampler.draw(num_units, self._source)
        self._batch_size = len(batch)
        return batch

    def release(self, rows: npt.NDArray[np.floating]) -> Release:
        """Clip the rows, sum them, and add noise.

        Args:
            rows: Slopes, shape (batch, K). A row with NaN or ±inf counts as 0. An empty batch releases noise alone.

        Returns:
            The step's release.

        Raises:
            BudgetExhausted: on release T + 1.
            ValueError: for a wrong shape.
        """
        self._refuse_when_spent()
        if self._batch_size is None or rows.shape != (self._batch_size, self.plan.num_directions):
            raise ValueError("rows must have one row per unit of the batch drawn for this step and K columns")
        step, self._step, self._batch_size = self._step, self._step + 1, None
        # Python integers: no number of rows overflows the sum.
        total = clip_rows(rows, self._lattice).sum(axis=0, dtype=object)
        noise = self.plan.mechanism.draw(self._lattice.bits, self.plan.num_directions, self._source.words())
        values = tuple(int(value) + draw for value, draw in zip(total, noise, strict=True))
        return Release(step, values, self._lattice.unit)

    def _refuse_when_spent(self) -> None:
        if self._step >= self.plan.steps:
            raise BudgetExhausted(f"all {self.plan.steps} releases of the plan are spent")
