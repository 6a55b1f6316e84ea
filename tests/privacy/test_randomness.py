"""Statistical tests of the exact samplers, with power: a scale wrong by 3 % must be seen at 10⁶ draws."""

import copy
import hashlib
import os
import pickle
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from dpzo.privacy import SecretRandom
from dpzo.privacy import randomness as module
from dpzo.privacy.randomness import gaussian_floor, laplace_floor, poisson_members

DRAWS = 1_000_000
BITS = 6
FALSE_ALARM = 1e-7  # a correct sampler fails one run in ten million
Sampler = Callable[[int, int, module.Words], list[int]]


def draw(sampler: Sampler, bits: int = BITS, size: int = DRAWS) -> npt.NDArray[np.int64]:
    return np.array(sampler(bits, size, SecretRandom().words()), dtype=np.int64)


def chi_square_p(draws: npt.NDArray[np.int64], law: stats.rv_continuous, scale: float = 1.0, bits: int = BITS) -> float:
    """χ² of lattice draws against the exact masses law.cdf((n+1)/2^bits) − law.cdf(n/2^bits), thin tails pooled."""
    low, high = int(-3.6 * 2**bits), int(3.6 * 2**bits)
    edges = np.arange(low, high + 1)
    cdf = np.concatenate([[0.0], law.cdf(edges / 2**bits, scale=scale), [1.0]])
    counts = np.concatenate([[np.sum(draws < low)], np.histogram(draws, bins=edges - 0.5)[0], [np.sum(draws >= high)]])
    return float(stats.chisquare(counts, np.diff(cdf) * len(draws)).pvalue)


@pytest.fixture(scope="module")
def gaussian() -> npt.NDArray[np.int64]:
    return draw(gaussian_floor)


@pytest.fixture(scope="module")
def laplace() -> npt.NDArray[np.int64]:
    return draw(laplace_floor)


def test_gaussian_cells_have_their_exact_masses(gaussian: npt.NDArray[np.int64]) -> None:
    assert chi_square_p(gaussian, stats.norm) > FALSE_ALARM


def test_laplace_cells_have_their_exact_masses(laplace: npt.NDArray[np.int64]) -> None:
    assert chi_square_p(laplace, stats.laplace) > FALSE_ALARM


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_a_scale_wrong_by_three_percent_is_seen(
    gaussian: npt.NDArray[np.int64], laplace: npt.NDArray[np.int64], factor: float
) -> None:
    assert chi_square_p(gaussian, stats.norm, factor) < FALSE_ALARM
    assert chi_square_p(laplace, stats.laplace, factor) < FALSE_ALARM


def test_tails_reach_as_far_as_the_law(gaussian: npt.NDArray[np.int64], laplace: npt.NDArray[np.int64]) -> None:
    for draws, law, cut in ((gaussian, stats.norm, 3.5), (laplace, stats.laplace, 8.0)):
        beyond = int(np.sum(np.abs(draws) >= cut * 2**BITS))
        assert stats.binomtest(beyond, DRAWS, 2 * law.sf(cut)).pvalue > FALSE_ALARM


def test_moments_of_the_continuous_law(gaussian: npt.NDArray[np.int64]) -> None:
    centred = (gaussian + 0.5) / 2**BITS  # ⌊X⌋ + 1/2 has mean E[X] up to the cell's curvature
    assert abs(centred.mean()) < 6 / DRAWS**0.5
    assert abs(centred.var() - 1) < 6 * (2 / DRAWS) ** 0.5 + 2.0**-12


def test_planted_faults_in_the_sampler_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check has teeth: one wrong branch of Karney's algorithm (std 1.055) fails it at a fifth of the draws."""

    def forgets_the_coin(k: int, x: module.Lazy, words: module.Words) -> bool:
        last, even = x, True
        while (drawn := module._descend(last, words)) is not None:
            if module._uniform_below(2 * k + 2, words) == 0:
                break
            last, even = drawn, not even
        return even

    monkeypatch.setattr(module, "_exp_minus_tail", forgets_the_coin)
    assert chi_square_p(draw(gaussian_floor, size=200_000), stats.norm) < FALSE_ALARM


@pytest.mark.parametrize("sampler", [gaussian_floor, laplace_floor])
def test_fine_digits_are_uniform_and_signs_fair(sampler: Sampler) -> None:
    fine = draw(sampler, bits=40, size=100_000)
    low_digits = np.bincount(fine & 0xFF, minlength=256)
    assert stats.chisquare(low_digits).pvalue > FALSE_ALARM
    assert stats.binomtest(int(np.sum(fine < 0)), len(fine)).pvalue > FALSE_ALARM


def test_floor_of_a_coarser_lattice_is_the_same_law() -> None:
    """⌊2^m X⌋ >> 3 is a draw of ⌊2^(m−3) X⌋: flooring goes down for negative numbers too."""
    assert chi_square_p(draw(gaussian_floor, bits=BITS + 3, size=300_000) >> 3, stats.norm) > FALSE_ALARM


def test_comparison_goes_on_to_further_digits_on_ties() -> None:
    x, y = [5], [5]
    assert module._less(x, y, iter([1, 2]))
    assert (x, y) == ([5, 1], [5, 2])


def test_bits_outside_a_word_are_refused() -> None:
    with pytest.raises(ValueError, match="bits"):
        gaussian_floor(65, 1, SecretRandom().words())


KEY = bytes(range(32))


@pytest.mark.parametrize("key", [None, KEY])
def test_cannot_be_pickled_copied_or_seeded(key: bytes | None) -> None:
    secret = SecretRandom(key)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            attempt(secret)  # type: ignore[operator]
    with pytest.raises(AttributeError):
        secret.seed = 7  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", [7, b"", b"short", bytes(31), bytes(33), "0" * 32, 0.5])
def test_what_is_no_key_is_refused(key: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        SecretRandom(key).word_array(1)  # type: ignore[arg-type]


def test_representation_shows_nothing() -> None:
    secret = SecretRandom(KEY)
    shown = repr(secret) + str(secret) + repr(secret.words())
    assert not any(form in shown for form in (repr(KEY), KEY.hex(), str(list(KEY)), KEY.decode("latin-1")))
    assert not hasattr(secret, "__dict__")


def test_a_key_gives_the_same_words_each_time_and_other_words_at_each_draw() -> None:
    def draws(key: bytes) -> list[list[int]]:
        secret = SecretRandom(key)
        noise = secret.words()
        return [
            secret.word_array(1000).tolist(),
            [next(noise) for _ in range(200)],
            secret.word_array(1000).tolist(),
            [next(secret.words()) for _ in range(2)],
        ]

    first = draws(KEY)
    assert first == draws(KEY)
    words = [word for draw in (*first, *draws(bytes(32)), *draws(KEY[::-1])) for word in draw]
    assert len(set(words)) == len(words)


def test_the_words_of_a_key_are_those_of_shake_256() -> None:
    """Draw i: SHAKE-256(label ‖ key ‖ i), little-endian words. A resume by a later version relies on it."""
    secret = SecretRandom(KEY)
    for number, size in ((0, 5), (1, 64), (2, 1)):
        wanted = hashlib.shake_256(b"dpzo step/1" + KEY + number.to_bytes(8, "big")).digest(8 * size)
        assert secret.word_array(size).tobytes() == wanted
    assert SecretRandom(KEY).word_array(1).tolist() == [0x64121A43C6F9A59D]


def test_words_under_keys_are_uniform() -> None:
    """χ² of the bytes of 2,000 keys' first words, and of one key's many words."""
    rng = np.random.Generator(np.random.PCG64(8))
    firsts = np.array([SecretRandom(rng.bytes(32)).word_array(4) for _ in range(2000)])
    for words in (firsts, SecretRandom(KEY).word_array(20_000)):
        counts = np.bincount(np.frombuffer(words.tobytes(), dtype=np.uint8), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-6


def test_a_fork_does_not_repeat_its_parent() -> None:
    words = SecretRandom().words()
    next(words)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, np.array(SecretRandom().word_array(4)).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read_end, 32) != np.array(SecretRandom().word_array(4)).tobytes()


def test_global_generators_decide_nothing() -> None:
    import random

    seeded = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        seeded.append((gaussian_floor(30, 4, SecretRandom().words()), SecretRandom().word_array(4).tolist()))
    assert seeded[0] != seeded[1]


def test_poisson_membership_is_independent_with_probability_q() -> None:
    q, num_units, batches = 0.05, 2_000, 1_000
    joined = np.zeros(num_units)
    sizes = []
    for _ in range(batches):
        members = poisson_members(num_units, q, SecretRandom())
        assert np.all(np.diff(members) > 0)
        joined[members] += 1
        sizes.append(len(members))
    assert stats.binomtest(int(joined.sum()), num_units * batches, q).pvalue > FALSE_ALARM
    # Each unit's count is Binomial(batches, q), and so is each batch's size: shuffled epochs would have no spread.
    for counts, trials in ((joined, batches), (np.array(sizes), num_units)):
        spread = float(np.sum((counts - trials * q) ** 2) / (trials * q * (1 - q)))
        assert FALSE_ALARM < stats.chi2.cdf(spread, len(counts)) < 1 - FALSE_ALARM


def test_membership_at_the_ends() -> None:
    assert poisson_members(5, 1.0, SecretRandom()).tolist() == [0, 1, 2, 3, 4]
    assert poisson_members(0, 0.5, SecretRandom()).tolist() == []
    assert len(poisson_members(1000, 2.0**-80, SecretRandom())) == 0
