"""The door: what goes in, what comes out, how often."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats

from dpzo.privacy import (
    BudgetExhausted,
    FullBatch,
    Gaussian,
    Laplace,
    Mechanism,
    PoissonSampling,
    PrivacyPlan,
    PrivateChannel,
    Sampler,
    lattice,
)


class Double:
    """A noise double: words from a public generator. Runs with it have no guarantee."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.Generator(np.random.PCG64(seed))

    def word_array(self, size: int) -> np.ndarray:
        return self.generator.integers(0, 2**64, size, dtype=np.uint64)

    def words(self) -> Iterator[int]:
        while True:
            yield int(self.word_array(1)[0])


def plan(
    mechanism: Mechanism | None = None, sampler: Sampler | None = None, steps: int = 3, num_directions: int = 4
) -> PrivacyPlan:
    return PrivacyPlan(
        num_examples=20,
        sampler=FullBatch() if sampler is None else sampler,
        mechanism=Gaussian(2.0) if mechanism is None else mechanism,
        clip_norm=1.5,
        steps=steps,
        num_directions=num_directions,
        delta=1e-5,
    )


def test_it_releases_exactly_the_planned_number() -> None:
    channel = PrivateChannel(plan(steps=3))
    for step in range(3):
        channel.draw_batch(20)
        assert channel.release(np.zeros((20, 4))).step == step
    assert channel.spent == 3
    with pytest.raises(BudgetExhausted):
        channel.release(np.zeros((20, 4)))
    with pytest.raises(BudgetExhausted):
        channel.draw_batch(20)


def test_steps_spent_before_count() -> None:
    channel = PrivateChannel(plan(steps=3), spent=2)
    channel.draw_batch(20)
    assert channel.release(np.zeros((20, 4))).step == 2
    with pytest.raises(BudgetExhausted):
        channel.draw_batch(20)


def test_an_empty_batch_releases_noise_alone() -> None:
    channel = PrivateChannel(plan(sampler=PoissonSampling(1e-12), steps=2))
    assert len(channel.draw_batch(20)) == 0
    release = channel.release(np.zeros((0, 4)))
    assert len(set(release.values)) > 1


@pytest.mark.parametrize("shape", [(19, 4), (20, 3), (20,), (20, 4, 1)])
def test_rows_of_another_batch_are_refused(shape: tuple[int, ...]) -> None:
    channel = PrivateChannel(plan())
    channel.draw_batch(20)
    with pytest.raises(ValueError, match="one row per unit"):
        channel.release(np.zeros(shape))


def test_a_batch_is_released_once() -> None:
    channel = PrivateChannel(plan())
    channel.draw_batch(20)
    channel.release(np.zeros((20, 4)))
    with pytest.raises(ValueError, match="one row per unit"):
        channel.release(np.zeros((20, 4)))


@pytest.mark.parametrize("mechanism", [Gaussian(2.0), Laplace(2.0)])
def test_the_released_sum_is_the_clipped_sum_plus_noise_of_the_claimed_scale(mechanism: Mechanism) -> None:
    steps = 4000
    the_plan = plan(mechanism, steps=steps)
    grid = lattice(mechanism, the_plan.clip_norm, 4)
    channel = PrivateChannel(the_plan)
    rows = np.zeros((20, 4))
    rows[:, 0], rows[3] = 0.5, np.nan
    released = []
    for _ in range(steps):
        channel.draw_batch(20)
        released.append(channel.release(rows).values)
    noise = (np.array(released, dtype=float) + 0.5) * grid.unit - [0.5 * 19, 0, 0, 0]
    law = {"gaussian": stats.norm, "laplace": stats.laplace}[mechanism.name](scale=2.0 * 1.5)
    for column in noise.T:
        assert stats.kstest(column, law.cdf).pvalue > 1e-7
    assert abs(np.corrcoef(noise.T)[np.triu_indices(4, 1)]).max() < 6 / steps**0.5


def test_equal_inputs_get_different_noise() -> None:
    def values() -> tuple[int, ...]:
        channel = PrivateChannel(plan())
        channel.draw_batch(20)
        return channel.release(np.ones((20, 4))).values

    assert values() != values()


def test_a_noise_double_is_stamped() -> None:
    assert PrivateChannel(plan()).has_guarantee

    def release() -> tuple[int, ...]:
        channel = PrivateChannel(plan(), nonprivate_randomness=Double)
        assert not channel.has_guarantee
        channel.draw_batch(20)
        return channel.release(np.ones((20, 4))).values

    assert release() == release()


def test_releases_and_channels_show_no_rows() -> None:
    channel = PrivateChannel(plan())
    channel.draw_batch(20)
    release = channel.release(np.full((20, 4), 0.12345))
    assert {field.name for field in dataclasses.fields(release)} == {"step", "values", "unit"}
    assert "0.12345" not in repr(release) + repr(channel) + repr(vars(channel))


def test_slopes_are_values_times_unit() -> None:
    channel = PrivateChannel(plan())
    channel.draw_batch(20)
    release = channel.release(np.ones((20, 4)))
    assert release.slopes().tolist() == [float(v) * release.unit for v in release.values]


def test_a_step_draws_one_batch() -> None:
    channel = PrivateChannel(plan())
    channel.draw_batch(20)
    with pytest.raises(ValueError, match="choose among batches"):
        channel.draw_batch(20)
    channel.release(np.zeros((20, 4)))
    assert len(channel.draw_batch(20)) == 20
