"""Scores of texts and their intervals, against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from dpzo.data.tasks import METRICS
from dpzo.data.tasks.answers import drop_exact_match, drop_f1, exact_match, normalised, squad_f1
from dpzo.data.tasks.tallies import bootstrap, interval, tally_answers, tally_labels, tally_losses
from dpzo.data.tasks.texts import meteor, nist


def test_squads_normalisation() -> None:
    assert normalised("  The U.S.\tArmy, a  tank!") == "us army tank"
    assert normalised("another") == "another"  # an article within a word is none
    assert exact_match("the 1320.", ["x", "1320"]) == 1
    assert exact_match("1321", ["x", "1320"]) == 0


def test_squads_f1_by_hand() -> None:
    assert squad_f1("the black cat sat", ["a black cat"]) == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert squad_f1("cat cat", ["cat dog"]) == pytest.approx(0.5)  # bags: one of two each way
    assert squad_f1("dog", ["cat", "dog"]) == 1
    assert squad_f1("", [""]) == 0
    with pytest.raises(ValueError, match="empty"):
        squad_f1("dog", [])


def test_drops_f1_by_hand() -> None:
    assert drop_f1("6 yards", ["6.0 yards"]) == 1
    assert drop_f1("7 yards", ["6 yards"]) == 0  # the number is missed, whatever else agrees
    assert drop_f1("6", ["6 yards"]) == 0.67  # P = 1, R = 1/2
    assert drop_f1("under 18", ["under the age of 18"]) == 0.67  # {under, 18} of {under, age, of, 18}
    assert drop_f1("cat cat", ["cat"]) == 1  # sets
    assert drop_f1("25-44", ["25 to 44"]) == 0.8
    assert drop_f1("", [""]) == 1
    assert drop_exact_match("The 6-yard", ["6.0 yard"]) == 1


def test_bleu_is_sacrebleus() -> None:
    answers = ["the cat sat on the mat", "there is a dog in the yard", "no"]
    golds = [["the cat sat on the mat .", "a cat sat"], ["there is a big dog in the yard"], ["no , never"]]
    columns = [[gold[0] for gold in golds], [gold[1] if len(gold) > 1 else None for gold in golds]]
    expected = sacrebleu.corpus_bleu(answers, columns).score / 100
    assert tally_answers("bleu", answers, golds).value() == pytest.approx(expected, abs=1e-12)
    assert tally_answers("bleu", ["a b c d"], [["a b c d"]]).value() == pytest.approx(1)
    assert tally_answers("bleu", [""], [["a"]]).value() == 0


def test_rouge_l_by_hand() -> None:
    # Longest common subsequence "a c": P = 2/3, R = 2/2.
    assert tally_answers("rouge_l", ["a b c"], [["z", "a c"]]).value() == pytest.approx(0.8)


def test_meteor_by_hand() -> None:
    # m = 3 of 3 matched in one chunk: F = 1, penalty = 0.5·(1/3)³; a stem counts as its word; two chunks cost more.
    penalty = 0.5 * (1 / 3) ** 3
    found = meteor(
        ["the cat sat", "the cats sat", "q", "", "b a"], [["the cat sat"], ["the cat sat"], ["a"], ["a"], ["a b"]]
    )
    assert found[:4] == pytest.approx([1 - penalty, 1 - penalty, 0.0, 0.0])
    assert found[4] == pytest.approx(1 - 0.5)
    assert meteor(["a b"], [["z", "a b"]])[0] == pytest.approx(1 - 0.5 * (1 / 2) ** 3)


def test_nist_by_hand() -> None:
    # One reference of four different words: each carries log2(4) = 2 bits, longer n-grams none.
    assert nist(["a b c d"], [["a b c d"]], order=1) == pytest.approx(2)
    assert nist(["q"], [["a b c d"]]) == 0


LABELS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=20)


@given(LABELS)
def test_tallies_of_labels_are_the_metrics(pairs: list[tuple[int, int]]) -> None:
    predictions, targets = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    for name, count in (("accuracy", 3), ("macro_f1", 3), ("f1", 2)):
        a, b = (predictions, targets) if count == 3 else (predictions % 2, targets % 2)
        assert tally_labels(name, a, b, count).value() == pytest.approx(METRICS[name](a, b, count))


def test_the_interval_covers_as_often_as_it_says() -> None:
    """120 test sets of 80 draws of Bernoulli(0.7): about 94 % of their intervals hold 0.7.

    104 or fewer has probability 1e-3 at 94 %; all 120 would mean intervals that are too wide.
    """
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(120):
        low, high = bootstrap(tally_losses((generator.random(80) < 0.7).astype(np.float64)))
        held += low <= 0.7 <= high
    assert 104 < held < 120


def test_the_interval_is_a_function_of_the_public_seed() -> None:
    tally = tally_losses(np.arange(50.0))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert bootstrap(tally, seed=3) == bootstrap(tally, seed=3) != bootstrap(tally, seed=4)
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    low, high = bootstrap(tally)
    # The mean of 50 values 0 … 49 has standard error 14.43/√50 = 2.04.
    assert low == pytest.approx(24.5 - 1.96 * 2.04, abs=0.6)
    assert high == pytest.approx(24.5 + 1.96 * 2.04, abs=0.6)


def test_records_of_one_unit_are_drawn_together() -> None:
    values = np.repeat(np.arange(20.0), 25)
    alone = bootstrap(tally_losses(values))
    together = bootstrap(tally_losses(values), units=np.repeat(np.arange(20), 25))
    assert together[1] - together[0] > 3 * (alone[1] - alone[0])


@pytest.mark.parametrize(("count", "right"), [(300, 1), (300, 0), (1, 1), (12, 0)])
def test_where_none_or_all_err_the_interval_is_exact(count: int, right: int) -> None:
    """Clopper–Pearson by hand: with n of n right, the lower end p has pⁿ = 0.025."""
    targets = np.ones(count, dtype=np.int64)
    tally = tally_labels("accuracy", np.full(count, right, dtype=np.int64), targets, 2)
    low, high = interval(tally)
    side = 0.025 ** (1 / count)
    assert (low, high) == pytest.approx((side, 1.0) if right else (0.0, 1.0 - side))
    assert bootstrap(tally) == (right, right)  # which says nothing of the next record


def test_the_exact_interval_counts_units_and_is_for_proportions_alone() -> None:
    targets = np.ones(40, dtype=np.int64)
    tally = tally_labels("accuracy", targets, targets, 2)
    assert interval(tally, units=np.arange(40) // 4) == pytest.approx((0.025**0.1, 1.0))
    mixed = tally_labels("accuracy", np.arange(40) % 2, targets, 2)
    assert interval(mixed) == bootstrap(mixed)
    for value in (0.0, 1.0):
        assert interval(tally_losses(np.full(9, value))) == (value, value)
    assert interval(tally_answers("squad_f1", ["a b"] * 9, [["a b"]] * 9))[0] == pytest.approx(0.025 ** (1 / 9))
    assert interval(tally_labels("f1", targets, targets, 2))[0] == pytest.approx(0.025 ** (1 / 40))
