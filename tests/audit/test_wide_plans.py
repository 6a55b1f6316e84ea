"""Wide plans: scored a few runs at a time and by what counts, and beyond reason refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dpzo.audit import attacks, audit_mechanism
from dpzo.audit import draws as drawing
from dpzo.audit.mechanism import MOST_DIRECTIONS
from dpzo.errors import DpzoError
from dpzo.privacy import Laplace, PoissonSampling, PrivacyPlan, PrivateChannel

MakePlan = Callable[..., PrivacyPlan]


def test_a_plan_too_wide_to_draw_is_refused_before_anything_is_drawn(make_plan: MakePlan) -> None:
    with pytest.raises(DpzoError, match="--num-directions: an audit draws every direction's noise") as caught:
        audit_mechanism(make_plan(num_directions=MOST_DIRECTIONS + 1), draws=200, channel_draws=200)
    assert "\n" not in str(caught.value)


def test_a_score_hangs_on_the_touched_coordinates_alone(make_plan: MakePlan) -> None:
    """So the others need not be held, of which a plan may have hundreds."""
    plan = make_plan(Laplace(0.6), PoissonSampling(0.4), num_directions=3)
    draw = np.random.Generator(np.random.PCG64(3))
    values = draw.integers(-3000, 3000, size=(40, 3)).astype(float)
    for attack, touched in zip(attacks(plan)[:2], ([0], [0, 1, 2]), strict=True):
        assert attack.touched.tolist() == touched
        assert np.array_equal(attack.score(values), attack.likelihood(values[:, touched]))


def test_scores_do_not_hang_on_how_many_runs_are_held_at_once(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wide plan is scored a few runs at a time, down to one."""
    plan = make_plan(Laplace(0.6), num_directions=2, steps=2)
    attack, sizes = attacks(plan)[0], []
    own = type(attack).score
    monkeypatch.setattr(
        type(attack), "score", lambda self, values, q=None: sizes.append(len(values)) or own(self, values, q)
    )
    monkeypatch.setattr(drawing, "NUMBERS_AT_ONCE", 8)
    found = drawing.channel_scores(PrivateChannel, drawing.whole_run, attack, True, 5)
    assert found.shape == (5,)
    assert sizes == [4, 4, 2]  # two runs of two steps, then one
