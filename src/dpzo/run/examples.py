"""Convert the private examples of `dpzo.fit` from common PyTorch forms to named tensors with one row per unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils import data

from dpzo.data.in_memory import column_names, is_datasets, is_stream
from dpzo.errors import DpzoError

Examples = Mapping[str, Tensor]

_FORMS = (
    "a dict of tensors, arrays or lists; a list of dicts or of (x, y) pairs; a pair (x, y); a TensorDataset or another "
    "Dataset with a length; a DataLoader; a datasets.Dataset; or a pandas DataFrame"
)
_PAIR = ("x", "y")


def read_examples(given: object, floats: torch.dtype, name: str = "examples") -> dict[str, Tensor]:
    """Return name → tensor (N, …), one row per unit, from any form in `_FORMS`.

    Unnamed columns are called x, or x and y. Tensors are not converted; other floats get the dtype `floats` (the
    model's). Only the records of a DataLoader are used: the plan draws the batches.

    Raises:
        DpzoError: naming `name`, and the column if one is invalid; never a value from a record.
    """
    problem = "they hold no unit"
    try:
        columns = {str(key): _column(str(key), value, floats) for key, value in _columns(given).items()}
    except _Unreadable as error:
        problem = str(error)
    except Exception as error:  # a data set's own code, whose message may quote a record
        problem = f"reading them raised {type(error).__name__}, whose message is withheld: it may quote a record"
    else:
        lengths = {len(tensor) for tensor in columns.values()}
        if len(lengths) == 1:
            return columns
        if lengths:
            problem = "their tensors differ in length: give one row a unit in each"
    raise DpzoError(f"{name}: {problem}")


class _Unreadable(Exception):
    """The reason why examples cannot be read, without a value from a record."""


def _columns(given: object) -> Mapping[Any, Any]:
    if isinstance(given, data.DataLoader):
        return _of_loader(given)
    if isinstance(given, data.TensorDataset):
        return _named(given.tensors)
    if isinstance(given, data.IterableDataset) or is_stream(given):
        raise _Unreadable("a stream cannot be drawn from unit by unit; give a list or a Dataset with a length")
    if _is_table(given):
        return _of_table(given)
    if isinstance(given, Mapping):
        if any(is_datasets(value) for value in given.values()):
            raise _Unreadable("this holds several splits; give one of them, such as examples['train']")
        return given
    if isinstance(given, Tensor | np.ndarray):
        return {"x": given}
    if isinstance(given, tuple) and not any(isinstance(part, Mapping) for part in given):
        return _named(given)
    if isinstance(given, list | tuple):
        return _of_rows(given)
    if is_datasets(given):
        return dict(given[:])  # type: ignore[index]
    if hasattr(given, "__len__") and hasattr(given, "__getitem__") and not isinstance(given, str | bytes):
        return _of_rows([given[index] for index in range(len(given))])
    raise _Unreadable(f"a {type(given).__name__} cannot be read; give {_FORMS}")


def _is_table(given: object) -> bool:
    """Whether the value is a DataFrame of pandas or of a compatible library."""
    return hasattr(given, "columns") and hasattr(given, "to_numpy")


def _of_table(table: Any) -> dict[str, Any]:
    names = column_names(table.columns)
    if names is None:
        raise _Unreadable("two columns have the same name; rename one")
    return {name: table[column].to_numpy() for name, column in zip(names, table.columns, strict=True)}


def _named(parts: Sequence[Any]) -> dict[str, Any]:
    if not 1 <= len(parts) <= len(_PAIR):
        raise _Unreadable(f"{len(parts)} tensors have no names; give a dict from name to tensor, as your loss reads it")
    return dict(zip(_PAIR, parts, strict=False))


def _of_rows(rows: Sequence[Any]) -> dict[str, Any]:
    if not rows:
        raise _Unreadable("they hold no unit")
    first = rows[0]
    if isinstance(first, Mapping):
        if any(not isinstance(row, Mapping) or row.keys() != first.keys() for row in rows):
            raise _Unreadable("the rows do not all have the same names; give every row the same ones")
        return {name: [row[name] for row in rows] for name in first}
    if isinstance(first, tuple):
        if any(not isinstance(row, tuple) or len(row) != len(first) for row in rows):
            raise _Unreadable("the rows do not all have the same number of parts; give every row the same parts")
        return _named([[row[place] for row in rows] for place in range(len(first))])
    return {"x": list(rows)}


def _of_loader(loader: data.DataLoader[Any]) -> Mapping[Any, Any]:
    instead = "give its dataset instead (examples=loader.dataset): the plan draws the batches"
    if isinstance(loader.dataset, data.IterableDataset):
        raise _Unreadable("a DataLoader of a stream cannot be drawn from unit by unit; give a Dataset with a length")
    plain = type(loader.sampler) is data.SequentialSampler or (
        type(loader.sampler) is data.RandomSampler
        and not loader.sampler.replacement
        and loader.sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    )
    if not plain or type(loader.batch_sampler) not in (data.BatchSampler, type(None)):
        raise _Unreadable(f"a DataLoader with a sampler of its own may leave out records; {instead}")
    if loader.collate_fn in (data.default_collate, data.default_convert):
        return _columns(loader.dataset)
    dataset: Any = loader.dataset
    batches = [loader.collate_fn([dataset[index]]) for index in range(len(dataset))]
    columns = _of_rows([tuple(batch) if isinstance(batch, list) else batch for batch in batches])
    for parts in columns.values():
        if any(
            not isinstance(part, Tensor) or part.shape[:1] != (1,) or part.shape != parts[0].shape for part in parts
        ):
            raise _Unreadable(
                "the DataLoader's collate_fn gives a batch of one record tensors of different widths; pad every record "
                "to one declared length"
            )
    return {name: torch.cat(parts) for name, parts in columns.items()}


def _column(name: str, value: Any, floats: torch.dtype) -> Tensor:
    if isinstance(value, Tensor):
        tensor = value.detach()
    elif isinstance(value, Sequence) and len(value) and all(isinstance(part, Tensor) for part in value):
        if len({part.shape for part in value}) > 1:
            raise _Unreadable(f"{name!r} has rows of different shapes; pad every record to one declared length")
        tensor = torch.stack([part.detach() for part in value])
    else:
        tensor = _from_array(name, value, floats)
    if tensor.ndim == 0 or tensor.layout is not torch.strided:
        raise _Unreadable(f"{name!r} is not a dense tensor with one row a unit")
    return tensor


def _from_array(name: str, value: Any, floats: torch.dtype) -> Tensor:
    array = _array(name, value)
    if array.dtype.kind == "f":
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64)).to(floats)
    if array.dtype.kind in "iub":
        known_to_torch = array.dtype.kind != "u" or array.dtype.itemsize == 1
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=") if known_to_torch else np.int64))
    raise _Unreadable(
        f"{name!r} holds text, missing values or something else than numbers; turn it into numbers, or leave it out"
    )


def _array(name: str, value: Any) -> npt.NDArray[Any]:
    ragged = False
    try:
        array = np.asarray(value)
        if array.dtype.kind == "O":  # a table's cells may be lists or numbers of Python
            array = np.asarray([np.asarray(cell) for cell in array])
    except ValueError:
        ragged = True
    if ragged:
        raise _Unreadable(f"{name!r} has rows of different shapes; pad every record to one declared length")
    return array
