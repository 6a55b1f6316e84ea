"""Bounds from one run: against the definition, against simulated mechanisms, and never above what holds."""

import math

import numpy as np
import pytest
from scipy import stats

from dpzo.audit.one_run import Guesses, binomial_epsilon, gaussian_epsilon, guessed, one_run_epsilons
from dpzo.privacy.accounting import closed_form


def test_pure_epsilon_is_randomised_response() -> None:
    """At δ = 0 the bound is the ε whose randomised response is right this often with probability `miss`."""
    found = Guesses(1000, 200, 170)
    epsilon = binomial_epsilon(found, 0.0, 0.05)
    assert stats.binom.sf(169, 200, 1 / (1 + math.exp(-epsilon))) == pytest.approx(0.05, rel=1e-6)
    assert binomial_epsilon(Guesses(1000, 200, 100), 0.0, 0.05) == 0.0
    assert binomial_epsilon(Guesses(1000, 0, 0), 0.0, 0.05) == 0.0


def test_delta_and_more_canaries_weaken_the_bound() -> None:
    strong = [
        binomial_epsilon(Guesses(m, 200, 190), delta, 0.05) for m, delta in ((200, 0.0), (200, 1e-4), (2000, 1e-4))
    ]
    assert strong[0] > strong[1] > strong[2] > 1.0


def test_the_term_of_delta_is_the_theorems() -> None:
    """Written out as sums of probabilities, for one ε."""
    found, delta, epsilon = Guesses(300, 40, 36), 1e-3, 1.5
    chance = 1 / (1 + math.exp(-epsilon))
    masses = [stats.binom.pmf(i, found.made, chance) for i in range(found.made + 1)]
    beta = sum(masses[found.right :])
    alpha = max(sum(masses[found.right - i : found.right]) / i for i in range(1, found.right + 1))
    p = beta + 2 * found.canaries * delta * alpha
    assert binomial_epsilon(found, delta, p * 1.000001) >= epsilon
    assert binomial_epsilon(found, delta, p * 0.999) < epsilon


def test_known_values_of_the_gaussian_bound() -> None:
    """Scores N(0,1) and N(s,1): the bound grows with s, beyond the binomial one, and stays below the truth."""
    draw = np.random.Generator(np.random.PCG64(3))
    members = draw.random(2000) < 0.5
    before = 0.0
    for shift in (1.0, 2.0, 3.0):
        scores = draw.normal(size=2000) + shift * members
        binomial, gaussian, found = one_run_epsilons(scores, members, 1e-5, 0.05, draw.permutation(2000))
        truth = closed_form.gaussian_epsilon(1e-5, shift)
        assert before < gaussian < truth
        assert 0 < binomial < gaussian
        assert found.canaries == 1000
        before = gaussian


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_both_bounds_fail_as_seldom_as_they_say(shift: float) -> None:
    """Each exceeds the truth in at most 10 % of the runs, up to what 100 runs may show by chance."""
    draw = np.random.Generator(np.random.PCG64(5))
    truth = closed_form.gaussian_epsilon(1e-3, shift) if shift else 0.0
    over = np.zeros(2)
    for _ in range(100):
        members = draw.random(200) < 0.5
        scores = draw.normal(size=200) + shift * members
        bounds = one_run_epsilons(scores, members, 1e-3, 0.1, draw.permutation(200))[:2]
        over += np.array(bounds) > truth
    assert (over <= stats.binom.isf(1e-4, 100, 0.1)).all()


def test_guesses_are_counted_once() -> None:
    scores, members = np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, False, True, False])
    assert guessed(scores, members, 0.0, 2.0) == Guesses(4, 3, 2)
    assert guessed(scores, members, 1.0, 1.0) == Guesses(4, 4, 3)  # one that reaches both is called "in"


def test_no_guess_refutes_nothing() -> None:
    assert gaussian_epsilon(Guesses(10, 0, 0), 1e-5, 0.05) == 0.0
    assert gaussian_epsilon(Guesses(10, 4, 0), 1e-5, 0.05) == 0.0
