"""Isolation measured at scale: the page is that of the results, nothing was missed, and a few cases are run anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.isolation import BEGIN, END, PAGE, QUICK, Sick, is_missed, load, made, rows_of, started, tables, tried
from benchmarks.results_file import RESULTS
from torch import Tensor, nn

from dpzo.models.isolation import RowShape, check_isolation, synthetic_rows
from dpzo.models.objectives import TokenObjective
from dpzo.models.operators import same_course


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((RESULTS / "isolation.json").read_text())["rows"]
    return rows


def test_the_page_is_that_of_the_results_and_nothing_was_missed(results: list[dict[str, Any]]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(f"{BEGIN}\n")[2].partition(END)[0] == tables(results)
    assert [row for row in results if is_missed(row)] == []


def test_the_results_cover_what_the_page_says(results: list[dict[str, Any]]) -> None:
    assert {row["threads"] for row in results} == {1, 2}
    assert {row["base"] for row in results} == {"float32", "bfloat16", "float16", "int8", "int4"}
    assert len({row["family"] for row in results}) == 14
    assert {(row["records"], row["width"]) for row in results} >= {(5, 50), (7, 33), (8, 48), (16, 64), (32, 32)}
    assert any(row["changed"] for row in results)  # the trials find what there is to find
    assert all(row["passes"] >= 60 for row in results if row["records"] > 1)


@pytest.mark.slow
@pytest.mark.parametrize("part", list(QUICK))
def test_cases_run_anew_are_not_missed(part: str) -> None:
    found = list(rows_of(part, QUICK[part], torch.get_num_threads()))
    assert len(found) == len(QUICK[part].models) * len(QUICK[part].shapes)
    assert not any(map(is_missed, found))


def test_a_mixture_of_experts_is_refused_whatever_its_rounding(tmp_path: Path) -> None:
    model = QUICK["experts"].models[0]
    loaded = load(model, tmp_path, "whole")
    for size in (2, 24):
        with made(model, "whole", loaded, size, 32, Sick(loaded)) as case:
            assert not started(case, size)


class Plain(nn.Module):
    """Logits from the mean token: a row knows itself alone, unless `meet` says otherwise."""

    def __init__(self, meet: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.arange(200, dtype=torch.float32).reshape(50, 4).sin())
        self.meet = meet

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.meet((self.embedding(input_ids) * attention_mask[..., None]).sum(1))


def by_sign(mean: Tensor) -> Tensor:
    """What a mixture of experts does: rows are gathered by what they are, worked on together, and put back."""
    result = torch.zeros_like(mean)
    for chosen in (mean[:, 0] > 0, mean[:, 0] <= 0):
        result[chosen] = 2 * mean[chosen]
    return result


@pytest.mark.parametrize(
    ("meet", "sound"), [(lambda mean: 2 * mean, True), (by_sign, False)], ids=["alike", "gathered"]
)
def test_a_course_that_hangs_on_records_is_refused_though_no_bit_moves(
    meet: Callable[[Tensor], Tensor], sound: bool
) -> None:
    shape = RowShape("classes", max_length=12, vocabulary=50, num_classes=4)
    objective = TokenObjective(Plain(meet), synthetic_rows(shape, 16), 8)
    alone = np.concatenate([objective.losses(np.array([record])) for record in range(16)])
    assert objective.losses(np.arange(16)).tobytes() == alone.tobytes()
    assert check_isolation(objective, 8) == sound
    assert check_isolation(TokenObjective(Plain(meet), synthetic_rows(shape, 2), 1), 1)


def test_courses_are_compared_by_operation_and_shape() -> None:
    ones = torch.ones(3)
    assert same_course([lambda: ones + 1, lambda: ones + 2])
    assert not same_course([lambda: ones + 1, lambda: ones * 1])
    assert not same_course([lambda: ones + 1, lambda: ones[:2] + 1])


def test_the_trials_see_a_record_that_moves(tmp_path: Path) -> None:
    model = QUICK["families"].models[1]
    loaded = load(model, tmp_path, "whole")
    layer: Any = loaded.module.get_output_embeddings()  # type: ignore[operator]

    def leak(_layer: Any, _arguments: Any, output: Tensor) -> Tensor:
        moved = output.clone()
        moved[-1] = torch.nextafter(output[-1], torch.zeros(()))  # the last place alone, the last bit alone
        return moved

    layer.register_forward_hook(leak)
    with made(model, "whole", loaded, 5, 17, Sick(loaded)) as case:
        assert len(tried(case, 5).changed) > 0
        assert not started(case, 5)
