"""Private examples in the forms that PyTorch users have: read, or refused in words without a value from a record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import data

from dpzo.errors import DpzoError
from dpzo.run.examples import read_examples

SECRET = 4711.25
X = torch.arange(18.0).reshape(6, 3)
Y = torch.arange(6)
ROWS = [{"x": x, "y": y} for x, y in zip(X, Y, strict=True)]
PAIRS = list(zip(X, Y, strict=True))


class MapStyle(data.Dataset[Any]):
    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> Any:
        return ROWS[index]


def hub(**columns: Any) -> Any:
    return pytest.importorskip("datasets").Dataset.from_dict(columns)


def table(**columns: Any) -> Any:
    return pytest.importorskip("pandas").DataFrame(columns)


def stacked(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


READ: dict[str, Callable[[], object]] = {
    "a dict of tensors": lambda: {"x": X, "y": Y},
    "a dict of arrays": lambda: {"x": X.numpy(), "y": Y.numpy()},
    "arrays of another width": lambda: {"x": X.double().numpy(), "y": Y.numpy()},
    "arrays of another byte order": lambda: {"x": X.numpy().astype(">f4"), "y": Y.numpy().astype(">i8")},
    "a dict of lists": lambda: {"x": X.tolist(), "y": Y.tolist()},
    "lists of tensors": lambda: {"x": list(X), "y": list(Y)},
    "rows": lambda: ROWS,
    "rows of plain values": lambda: [{"x": x.tolist(), "y": int(y)} for x, y in PAIRS],
    "pairs": lambda: PAIRS,
    "a pair": lambda: (X, Y),
    "a pair of arrays": lambda: (X.numpy(), Y.numpy()),
    "a TensorDataset": lambda: data.TensorDataset(X, Y),
    "a Subset": lambda: data.Subset(data.TensorDataset(X, Y), range(6)),
    "a Dataset of rows": MapStyle,
    "a DataLoader": lambda: data.DataLoader(MapStyle(), batch_size=4),
    "a shuffling DataLoader that drops the last": lambda: data.DataLoader(
        MapStyle(), batch_size=4, shuffle=True, drop_last=True
    ),
    "a DataLoader with its own collate_fn": lambda: data.DataLoader(MapStyle(), batch_size=4, collate_fn=stacked),
    "a datasets.Dataset": lambda: hub(x=X.tolist(), y=Y.tolist()),
    "a formatted datasets.Dataset": lambda: hub(x=X.tolist(), y=Y.tolist()).with_format("torch"),
    "a DataFrame": lambda: table(x=X.tolist(), y=Y.numpy()),
}


@pytest.mark.parametrize("make", READ.values(), ids=READ)
@pytest.mark.filterwarnings("default")
def test_forms_that_are_read(make: Callable[[], object]) -> None:
    found = read_examples(make(), torch.float32)
    assert found.keys() == {"x", "y"}
    assert found["x"].dtype == torch.float32
    assert found["y"].dtype == torch.int64
    assert torch.equal(found["x"], X)
    assert torch.equal(found["y"], Y)


def test_a_tensor_alone_is_x_and_keeps_its_dtype() -> None:
    (found,) = read_examples(X.double(), torch.float32).values()
    assert found.dtype == torch.float64


def test_floats_that_are_no_tensors_take_the_models_dtype() -> None:
    found = read_examples({"x": X.numpy(), "b": np.ones(6, dtype=bool)}, torch.bfloat16)
    assert (found["x"].dtype, found["b"].dtype) == (torch.bfloat16, torch.bool)


class Faulty(MapStyle):
    def __getitem__(self, index: int) -> Any:
        raise AttributeError(f"no field in record {SECRET}")


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "nothing": (lambda: None, "a NoneType cannot be read; give a dict of tensors"),
    "a text": (lambda: f"{SECRET}", "a str cannot be read"),
    "an empty list": (list, "hold no unit"),
    "an empty dict": (dict, "hold no unit"),
    "a generator": (lambda: iter(ROWS), "a stream cannot be drawn from unit by unit"),
    "uneven tensors": (lambda: {"x": X, "y": Y[:4]}, "one row a unit"),
    "rows of several lengths": (lambda: {"x": [[SECRET], [SECRET, 1.0]]}, "'x' has rows of different shapes; pad"),
    "tensors of several lengths": (lambda: {"x": [X[0], X[0, :2]]}, "'x' has rows of different shapes; pad"),
    "text in a column": (lambda: {"x": X, "name": [f"{SECRET}"] * 6}, "'name' holds text"),
    "a missing value": (lambda: {"x": [1.0, None, SECRET]}, "'x' holds text, missing values"),
    "a scalar": (lambda: {"x": torch.tensor(SECRET)}, "'x' is not a dense tensor"),
    "other names in a row": (lambda: [{"x": X[0]}, {"z": X[0]}], "do not all have the same names"),
    "three tensors": (lambda: (X, X, Y), "3 tensors have no names; give a dict"),
    "several splits": (lambda: {"train": hub(x=[1.0])}, "examples['train']"),
    "a streamed DataLoader": (lambda: data.DataLoader(Streamed()), "a DataLoader of a stream"),
    "a weighted DataLoader": (
        lambda: data.DataLoader(MapStyle(), sampler=data.WeightedRandomSampler([1.0] * 6, 6)),
        "give its dataset instead",
    ),
    "a DataLoader that pads to the longest": (
        lambda: data.DataLoader(MapStyle(), collate_fn=lambda rows: {"x": rows[0]["x"][: 1 + int(rows[0]["y"]) % 2]}),
        "of different widths; pad every record",
    ),
    "a faulty Dataset": (Faulty, "reading them raised AttributeError, whose message is withheld"),
}


class Streamed(data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(ROWS)


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_forms_that_are_refused_show_no_record(make: Callable[[], object], said: str) -> None:
    with pytest.raises(DpzoError) as caught:
        read_examples(make(), torch.float32)
    assert said in str(caught.value)
    assert str(SECRET) not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
