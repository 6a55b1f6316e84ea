"""The card: one sentence, rounded to the safe side, and "no guarantee" as soon as one assumption fails."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpzo.config.solve import solve_plan
from dpzo.privacy import PrivacyPlan, Release
from dpzo.privacy.plan import relation_named
from dpzo.report import build_card, render_markdown, write_card
from dpzo.report.card import round_up
from dpzo.run.header import journal_header
from dpzo.run.journal import Journal, read
from dpzo.run.private_count import release_count
from dpzo.run.step_key import STEP_KEY

STEPS = 3


def make_plan(**options: Any) -> PrivacyPlan:
    given: dict[str, Any] = {
        "num_examples": 100,
        "expected_batch_size": 10.0,
        "steps": STEPS,
        "delta": 1e-5,
        "noise_multiplier": 4.0,
        "clip_norm": 2.0,
        "num_directions": 2,
    }
    return solve_plan(**{**given, **options})


def card_of(
    folder: Path,
    plan: PrivacyPlan | None = None,
    *,
    spent: int = STEPS,
    has_guarantee: bool = True,
    unit_column: str | None = None,
    tuning: str = "not declared",
    clean: bool = True,
    **public: Any,
) -> dict[str, Any]:
    """The card of a run that was never trained: it depends on the journal alone."""
    plan = make_plan() if plan is None else plan
    facts = {
        "tuning": tuning,
        "unit_column": unit_column,
        "base": {"name": "tiny", "fingerprint": "f" * 64},
        "num_examples_source": "declared",
        "evaluation": {"isolation": "passed"},
        "nonprivate_uses": [],
        "environment": {"dpzo": "1", "torch": "2"},
    }
    folder.mkdir(exist_ok=True)
    journal = Journal.create(folder, journal_header(plan, has_guarantee, {**facts, **public}))
    for step in range(spent):
        journal.append(Release(step, (step,) * plan.num_directions, 1.0))
    journal.close(clean=clean)
    if not clean:
        (folder / STEP_KEY).unlink()
        Journal.reopen(folder).close(clean=True)
    return write_card(folder, read(folder))


def test_the_claim_is_one_sentence_with_every_term(tmp_path: Path) -> None:
    plan = make_plan()
    card = card_of(tmp_path, plan)
    assert card["guarantee"] is True
    assert (card["epsilon"], card["delta"]) == (plan.epsilon, 1e-5)
    claim = card["claim"]
    assert claim.count(". ") == 0
    for part in (round_up(plan.epsilon), "δ = 1e-05", "single record", "zero_out", "replaced by nothing"):
        assert part in claim
    assert {a["verdict"] for a in card["assumptions"]} == {"pass", "assumed"}


@given(epsilon=st.floats(min_value=1e-12, max_value=1e6))
def test_a_shown_epsilon_is_never_below_the_true_one(epsilon: float) -> None:
    shown = float(round_up(epsilon))
    assert epsilon <= shown <= epsilon + 1.01e-4


@pytest.mark.parametrize("delta", [1.23456741e-5, 1e-9, 0.001])
def test_delta_is_stated_exactly(tmp_path: Path, delta: float) -> None:
    claim = card_of(tmp_path, make_plan(delta=delta))["claim"]
    (shown,) = re.findall(r"δ = (\S+) for", claim)
    assert float(shown) == delta


def test_pure_epsilon_says_so(tmp_path: Path) -> None:
    card = card_of(tmp_path, make_plan(delta=0.0, mechanism="laplace", num_directions=1))
    assert "(pure)" in card["claim"]
    assert "δ" not in card["claim"]
    assert card["mechanism"]["name"] == "laplace"
    assert card["mechanism"]["clip"].startswith("L1 norm")


@pytest.mark.parametrize("relation", ["zero_out", "add_or_remove_one", "replace_one"])
def test_the_relation_is_named_and_explained(tmp_path: Path, relation: str) -> None:
    card = card_of(tmp_path, make_plan(relation=relation_named(relation)))
    assert card["relation"]["name"] == relation
    assert card["relation"]["meaning"] in card["claim"]
    assert f"under the relation {relation}" in card["claim"]


FAILING: list[tuple[dict[str, Any], str]] = [
    ({"has_guarantee": False}, "Noise and batches come from operating-system entropy"),
    ({"num_examples_source": "from-file"}, "The number of units was declared"),
    ({"num_examples_source": "something new"}, "The number of units was declared"),
    ({"evaluation": {"isolation": "failed"}}, "A record's loss does not depend on the other records"),
    ({"nonprivate_uses": ["nonprivate_loss"]}, "No non-private diagnostic was switched on"),
    ({"spent": STEPS + 1}, "No more releases were made than the plan accounts for"),
]


@pytest.mark.parametrize(("change", "statement"), FAILING, ids=[str(change) for change, _ in FAILING])
def test_a_failing_assumption_leaves_no_number_to_claim(tmp_path: Path, change: dict[str, Any], statement: str) -> None:
    plan = make_plan()
    card = card_of(tmp_path, plan, **change)
    assert card["guarantee"] is False
    assert card["epsilon"] is card["delta"] is None
    assert card["claim"].startswith("No guarantee")
    failed = [a["statement"] for a in card["assumptions"] if a["verdict"] == "fail"]
    assert len(failed) == 1
    assert failed[0].startswith(statement)
    page = (tmp_path / "privacy_card.md").read_text()
    assert f"**{card['claim']}**" in page
    assert f"- **fail**: {statement}" in page
    for text in (page, json.dumps(card)):
        assert "ε = " not in text
        assert f"{plan.epsilon:.3f}" not in text


@pytest.mark.parametrize(
    ("options", "facts", "said"),
    [
        ({"delta": 0.01}, {}, "δ = 0.01 is not below 1/N = 0.01"),
        ({"delta": 0.4}, {}, "δ = 0.4 is not below 1/N"),
        ({"noise_multiplier": 0.3, "steps": 50}, {}, "is above 10: a formal guarantee that protects little"),
        (
            {"noise_multiplier": None, "epsilon": 9.8},
            {"count": release_count(100, 0.5).to_dict()},
            "ε = 10.3 is above 10",
        ),
    ],
)
def test_what_limits_a_claim_is_a_finding(
    tmp_path: Path, options: dict[str, Any], facts: dict[str, Any], said: str
) -> None:
    card = card_of(tmp_path, make_plan(**options), spent=0, **facts)
    assert card["guarantee"] is True
    assert any(said in finding for finding in card["findings"])
    assert card["claim"].endswith("The findings below limit this claim.")
    page = (tmp_path / "privacy_card.md").read_text()
    assert page.index("## Findings") < page.index(said) < page.index("## Assumptions")


@pytest.mark.parametrize("options", [{}, {"delta": 0.0099}, {"epsilon": 9.9, "noise_multiplier": None}])
def test_an_ordinary_claim_has_no_finding(tmp_path: Path, options: dict[str, Any]) -> None:
    card = card_of(tmp_path, make_plan(**options))
    assert card["findings"] == []
    assert "## Findings" not in (tmp_path / "privacy_card.md").read_text()
    assert "findings" not in card["claim"]


def test_a_loss_that_is_not_ours_is_assumed_isolated(tmp_path: Path) -> None:
    card = card_of(tmp_path, evaluation={"isolation": "assumed"})
    said = [a["verdict"] for a in card["assumptions"] if "checked on synthetic rows" in a["statement"]]
    assert said == ["assumed"]
    assert card["guarantee"] is True


def test_only_a_run_from_files_has_a_local_file(tmp_path: Path) -> None:
    of_a_module = card_of(tmp_path / "module", settings={"smoothing": 1e-3}, evaluation={"isolation": "assumed"})
    assert not any("local.yaml" in item for item in of_a_module["not_covered"])
    assert any("local.yaml" in item for item in card_of(tmp_path / "files")["not_covered"])


def test_a_cap_on_a_units_records_stands_on_the_card(tmp_path: Path) -> None:
    card = card_of(tmp_path, unit_column="who", config={"data": {"max_records_per_unit": 3}})
    assert card["unit"] == "set of all records that share a value of column 'who' (the first 3 of them are used)"


def test_a_double_is_not_called_entropy(tmp_path: Path) -> None:
    card = card_of(tmp_path, has_guarantee=False)
    assert "operating-system entropy" not in card["mechanism"]["sampler"]
    assert "double" in card["mechanism"]["sampler"]


def test_a_run_that_stopped_early_claims_the_whole_plan(tmp_path: Path) -> None:
    plan = make_plan()
    early, whole = card_of(tmp_path / "early", plan, spent=1), card_of(tmp_path / "whole", plan)
    assert early["claim"] == whole["claim"]
    assert early["epsilon"] == whole["epsilon"]
    assert (early["steps"]["planned"], early["steps"]["spent"]) == (STEPS, 1)
    assert "whole plan" in early["steps"]["note"]


def test_burnt_steps_are_counted_as_spent(tmp_path: Path) -> None:
    steps = card_of(tmp_path, spent=2, clean=False)["steps"]
    assert (steps["spent"], steps["burnt"]) == (3, 1)
    assert "3 spent, 1 burnt" in (tmp_path / "privacy_card.md").read_text()
    assert "**assumed**: Which steps are burnt" in (tmp_path / "privacy_card.md").read_text()


def test_a_run_that_is_whole_assumes_nothing_of_clocks(tmp_path: Path) -> None:
    for spent, stands in ((STEPS, 0), (1, 1)):
        card = card_of(tmp_path / str(spent), spent=spent)
        rows = [row["statement"] for row in card["assumptions"]]
        assert sum(row.startswith("The step at which this unfinished run stopped") for row in rows) == stands
        assert not any("burnt" in row for row in rows)


def test_the_unit_is_the_declared_column(tmp_path: Path) -> None:
    card = card_of(tmp_path, unit_column="patient")
    assert card["unit"] == "set of all records that share a value of column 'patient'"
    assert card["unit"] in card["claim"]


def test_the_card_holds_what_a_reader_needs(tmp_path: Path) -> None:
    plan = make_plan()
    card = card_of(tmp_path, plan, tuning="on public data")
    assert card["mechanism"]["noise_scale"] == 8.0
    assert card["mechanism"]["noise_multiplier"] == 4.0
    assert card["sampling"] == {
        "name": "poisson",
        "sampling_prob": 0.1,
        "expected_batch_size": 10.0,
        "num_examples": 100,
        "num_examples_source": "declared",
        "count_epsilon": None,
        "normaliser": "the expected batch size, a public constant",
    }
    assert card["accountant"] == plan.accountant
    assert card["tuning"] == "on public data"
    assert card["journal_hash"] == read(tmp_path).last_hash
    assert card["versions"] == {"dpzo": "1", "torch": "2"}
    assert any("local.yaml" in item for item in card["not_covered"])
    assert any("several runs" in item for item in card["not_covered"])
    page = (tmp_path / "privacy_card.md").read_text()
    for text in (*card["not_covered"], plan.accountant, "on public data", "N = 100 (declared)", "## Assumptions"):
        assert text in page


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"config": {"training": {"smoothing": 0.01}}}, 0.04),
        ({"config": {"training": {"smoothing": 0.01, "estimator": "central"}}}, 0.04),
        ({"config": {"training": {"smoothing": 0.01, "estimator": "forward"}}}, 0.02),
        ({"settings": {"smoothing": 1e-3}}, 0.004),
        ({"settings": {"smoothing": 1e-3, "estimator": "one that is not known"}}, None),
        ({"config": {"training": {"smoothing": None}}}, None),
        ({}, None),
    ],
)
def test_the_clip_is_also_stated_on_loss_differences(
    tmp_path: Path, facts: dict[str, Any], expected: float | None
) -> None:
    card = card_of(tmp_path, **facts)
    mechanism, page = card["mechanism"], render_markdown(card)
    assert mechanism["clip_norm"] == 2.0
    if expected is None:
        assert mechanism["loss_difference_clip"] is None
        assert "loss difference" not in page
    else:
        assert mechanism["loss_difference_clip"] == pytest.approx(expected)
        assert (
            f"slopes ≤ 2, = {expected:g} in raw loss differences at smoothing φ = {mechanism['smoothing']:g} |" in page
        )


def test_the_files_are_the_owners_and_the_same_again(tmp_path: Path) -> None:
    card = card_of(tmp_path)
    names = ("privacy_card.json", "privacy_card.md")
    before = [(tmp_path / name).read_bytes() for name in names]
    assert write_card(tmp_path, read(tmp_path)) == card == build_card(read(tmp_path))
    assert [(tmp_path / name).read_bytes() for name in names] == before
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names] == [0o600, 0o600]
    assert json.loads(before[0]) == card


def test_a_users_words_cannot_break_out_of_their_row(tmp_path: Path) -> None:
    words = "tuned |\n\n# Privacy card\n\n**ε = 0** | on\tpublic data"
    card = card_of(tmp_path, tuning=words, unit_column="a|b\nc", base={"name": "x|\ny", "fingerprint": "f" * 64})
    page = render_markdown(card).splitlines()
    assert page.count("# Privacy card") == 1
    rows = [line for line in page if line.startswith("|")]
    assert len(rows) == 13
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert card["tuning"] == words


def test_what_is_held_of_the_records_is_named(tmp_path: Path) -> None:
    passed = {"isolation": "passed", "head_block": None}
    for number, (evaluation, expected) in enumerate(
        [
            ({"isolation": "passed"}, "nothing"),  # a module of one's own, and journals of earlier versions
            ({**passed, "prefix": {"layers": 0, "keep": "none"}}, "nothing"),
            (
                {**passed, "prefix": {"layers": 4, "keep": "batch"}},
                "the lowest 4 layers, which are frozen, for a step's records",
            ),
            (
                {**passed, "prefix": {"layers": 4, "keep": "run"}},
                "for every record drawn, in memory or in an unnamed file",
            ),
            (
                {**passed, "head_block": 256, "prefix": {"layers": 0, "keep": "none"}},
                "encoder's features of every record",
            ),
        ]
    ):
        card = card_of(tmp_path / str(number), evaluation=evaluation)
        assert expected in card["held"]
        assert f"| kept in addition to the tokens | {card['held']} |" in render_markdown(card)
