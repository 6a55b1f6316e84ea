"""`dpzo.finetune`: fine-tune a language model from Python, with every option as a keyword."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from dpzo.config.reading import ConfigLike, merged, parse_config
from dpzo.config.schema import RunConfig
from dpzo.data.tasks.tables import Tell, untold
from dpzo.errors import DpzoError
from dpzo.run import folders
from dpzo.run.local import Data
from dpzo.run.loop import RandomnessAt
from dpzo.run.progress import Watcher, unwatched
from dpzo.run.run import Run


def finetune(
    model: str | Path | None = None,
    data: Data | None = None,
    *,
    output: str | Path,
    epsilon: float | None = None,
    delta: float | None = None,
    num_examples: int | Literal["private", "from-file"] | None = None,
    kind: Literal["classification", "completion", "chat"] | None = None,
    labels: Sequence[str] | None = None,
    unit_column: str | None = None,
    max_length: int | None = None,
    trainable: str | None = None,
    steps: int | None = None,
    expected_batch_size: float | None = None,
    num_directions: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    config: ConfigLike | None = None,
    watch: Watcher = unwatched,
    tell: Tell = untold,
    nonprivate_randomness: RandomnessAt | None = None,
    **options: Any,
) -> Run:
    """Fine-tune a language model on private data, as `dpzo train` does.

    The published output (weights, journal, card) is (ε, δ)-differentially private for every privacy unit, under the
    assumptions that the card lists. In-memory data is read in place: no copy is written to disk, so you must pass it
    again to resume the run. For any other `nn.Module`, use `dpzo.fit`.

    Args:
        model: A Hugging Face model name, or a model's folder.
        data: The private data: a path (a csv, tsv, jsonl, json or parquet file, a folder of `save_to_disk`, or
            hub:NAME), several paths, a pandas or polars DataFrame, a `datasets.Dataset`, a list of dicts, or a
            `dpzo.DataSource` for a split, a revision, or the folder of a built-in task.
        output: A new folder for the run.
        epsilon: The privacy budget ε. Alternatively, set the noise directly with `noise_multiplier=`.
        delta: δ of the guarantee; must be below 1/N.
        num_examples: N, the number of privacy units: an integer that you declare, "private" (counted with noise, which
            spends part of ε), or "from-file" (no guarantee).
        kind: The kind of records; inferred from the column names by default.
        labels: The labels of a classification task, in order.
        unit_column: The column that identifies the privacy unit (for example, a patient). By default each record is a
            unit.
        max_length: Number of tokens to which each record is padded or truncated.
        trainable: The parameters to train: head, full, lora, prefix, prompt, ia3, or a regular expression.
        steps: Number of steps; each is one release.
        expected_batch_size: Expected number of units per batch.
        num_directions: Number of directions per step, K.
        learning_rate: The learning rate; by default derived from the plan and its noise.
        seed: Public seed of the directions and of new parameters.
        config: A `RunConfig`, a mapping of its groups, or the path of a YAML file; a keyword overrides its field.
        watch: Called once before the first step with a `Progress`; returns a callback that is called with each release.
        tell: Called with progress lines before the first step, for example `print`.
        nonprivate_randomness: For tests; such a run claims no guarantee.
        **options: Any other field of `RunConfig` by its name, such as `clip_norm=8.0` or `lora_rank=4`.

    Returns:
        The finished run.

    Raises:
        DpzoError: for a user error, such as an unknown option, a missing label or an output folder that exists.
        dpzo.Stopped: after Ctrl-C or SIGTERM; `dpzo.resume(output)` resumes the run.

    Example:
        ```python
        run = dpzo.finetune(
            "HuggingFaceTB/SmolLM2-135M-Instruct", data, epsilon=2, delta=1e-5, num_examples=5000, output="run"
        )
        print(run.card["claim"])
        ```
    """
    if data is None:
        raise DpzoError("data: is missing; give a path, several, a data frame, a datasets.Dataset or a list of dicts")
    given = {
        "model": _model_name(model),
        "epsilon": epsilon,
        "delta": delta,
        "num_examples": num_examples,
        "kind": kind,
        "labels": labels,
        "unit_column": unit_column,
        "max_length": max_length,
        "trainable": trainable,
        "steps": steps,
        "expected_batch_size": expected_batch_size,
        "num_directions": num_directions,
        "learning_rate": learning_rate,
        "seed": seed,
        **options,
    }
    chosen = chosen_config(config, {name: value for name, value in given.items() if value is not None})
    folders.train(chosen, data, output, watch=watch, tell=tell, nonprivate_randomness=nonprivate_randomness)
    return Run(output)


def chosen_config(config: ConfigLike | None, options: Mapping[str, Any]) -> RunConfig:
    """Return `config` with the fields overridden that `options` names by keyword.

    Raises:
        DpzoError: for an unknown keyword (the message suggests the nearest one), or an invalid config.
    """
    fields = {_field(name): value for name, value in options.items()}
    if config is None or isinstance(config, str | Path):
        return parse_config(merged(None if config is None else Path(config), fields))
    groups = config.model_dump() if isinstance(config, RunConfig) else config
    if not isinstance(groups, Mapping):
        raise DpzoError(f"config: is a {type(config).__name__}; give a RunConfig, a mapping, or a YAML file's path")
    flat = {str(name): value for name, value in groups.items() if "." in str(name)}
    for group, values in groups.items():
        if group not in flat:
            flat |= {f"{group}.{field}": value for field, value in _group(group, values).items()}
    return parse_config(merged(None, flat | fields))


def _group(group: str, values: object) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise DpzoError(f"config: {group} is a {type(values).__name__}; give a mapping of its fields")
    return values


def keywords() -> dict[str, list[str]]:
    """Map each keyword to the `RunConfig` fields (`group.field`) that it names. `model` means model.name."""
    found = defaultdict(list)
    for group, info in RunConfig.model_fields.items():
        for leaf in info.annotation.model_fields:  # type: ignore[union-attr]
            found["model" if (group, leaf) == ("model", "name") else leaf].append(f"{group}.{leaf}")
    return dict(found)


def _field(keyword: str) -> str:
    known = keywords()
    fields = known.get(keyword, [])
    if len(fields) == 1:
        return fields[0]
    if fields:
        raise DpzoError(f"{keyword}: names {' and '.join(fields)}; give it as config={{{fields[0]!r}: …}}")
    near = get_close_matches(keyword, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "docs/configuration.md lists the options"
    raise DpzoError(f"{keyword}: no such option of dpzo.finetune; {hint}")


def _model_name(model: object) -> str | None:
    if model is None or isinstance(model, str | Path):
        return None if model is None else str(model)
    if isinstance(model, RunConfig | Mapping):
        raise DpzoError(f"model: is a {type(model).__name__}; give the config as config=…, and the data as data=…")
    raise DpzoError(f"model: is a {type(model).__name__}; give a hub name or a folder, or use dpzo.fit for a module")
