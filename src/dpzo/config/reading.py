"""Configs from YAML, assignments and mappings, with errors in a user's words; and configs as YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from dpzo.config.plain import PLAIN, parse_yaml
from dpzo.config.schema import RunConfig, option_name
from dpzo.errors import DpzoError


def load_config(path: Path | None, options: Mapping[str, Any], assignments: Sequence[str] = ()) -> RunConfig:
    """Load a config from a YAML file, overridden by options and then by assignments.

    Args:
        path: A YAML file; None for none.
        options: Dotted field name → value.
        assignments: Texts of the form `group.field=value`.

    Returns:
        The validated config.

    Raises:
        DpzoError: naming the option or the field, without repeating its value.
    """
    return parse_config(merged(path, options, assignments))


def merged(path: Path | None, options: Mapping[str, Any], assignments: Sequence[str] = ()) -> dict[str, Any]:
    """What `load_config` validates: groups of fields as they were given."""
    tree: dict[str, Any] = {}
    if path is not None:
        tree = _read_yaml(path)
    for name, value in options.items():
        _assign(tree, name, value)
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or not name:
            raise DpzoError("--set takes group.field=value, for instance --set training.smoothing=0.01")
        try:
            value = parse_yaml(text)
        except ValueError:
            raise DpzoError(f"--set {name}: the value is not YAML {PLAIN}") from None
        _assign(tree, name.strip(), value)
    return tree


def parse_config(tree: Mapping[str, Any]) -> RunConfig:
    """Validate a nested mapping as a config.

    Args:
        tree: Group → field → value.

    Returns:
        The validated config.

    Raises:
        DpzoError: naming the first invalid field and what it must be.
    """
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        # A mistyped name explains why another one is missing, so it is reported first.
        first = min(found, key=lambda problem: problem["type"] != "extra_forbidden")
        place = tuple(str(part) for part in first["loc"])[:2]
        raise DpzoError(_problem(place, first["type"], first["msg"])) from None


def has_unknown_names(tree: Mapping[str, Any]) -> bool:
    """Whether a nested mapping names a group or a field that does not exist."""
    known = {name: info.annotation.model_fields for name, info in RunConfig.model_fields.items()}  # type: ignore[union-attr]
    return any(group not in known or not set(fields) <= set(known[group]) for group, fields in tree.items())


RENAMED = {"mask": "density", "prefix": "frozen_cache", "variants": "eval_batch"}
"""Fields of `training` as version 0.1.0 named them, and their names now. Only headers may have the old ones."""


def stated_config(tree: Mapping[str, Any]) -> RunConfig:
    """The config of a journal's header; a field that its version did not know has today's default."""
    training = {RENAMED.get(name, name): value for name, value in tree["training"].items()}
    return parse_config({**tree, "training": training})


# What must be given, and what to say to someone who did not; a group stands for its first needed field.
_NEEDED = {
    "model": "--model is missing: a Hugging Face name or a local folder",
    "privacy": "--delta is missing: the δ of the guarantee, below 1/N, for instance 1e-5",
}


def _problem(place: tuple[str, ...], kind: str, message: str) -> str:
    """A validation error in a user's words; `message` is pydantic's, which hides the value."""
    field = ".".join(place)
    if kind == "missing":
        return _NEEDED[place[0]]
    if kind == "extra_forbidden":
        group = RunConfig.model_fields[place[0]].annotation if len(place) > 1 else RunConfig
        known = tuple(group.model_fields) if isinstance(group, type) and issubclass(group, BaseModel) else ()
        near = get_close_matches(place[-1], known, n=1)
        return f"{field}: no such {'field' if len(place) > 1 else 'group'}; " + (
            f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        )
    if field == "privacy.num_examples":
        return "--num-examples (privacy.num_examples): must be a whole number of at least 1, private, or from-file"
    # "Input should be a valid number, unable to parse string as a number"
    plain = message.partition(", unable")[0].replace("Input should", "must")
    return f"{option_name(field)}: {plain[0].lower()}{plain[1:]}"


ConfigLike = RunConfig | Mapping[str, Any] | str | Path


def as_config(given: ConfigLike) -> RunConfig:
    """A config from any of its forms: itself, a mapping of groups (or of `group.field` names), a YAML file's path."""
    if isinstance(given, RunConfig):
        return given
    if isinstance(given, str | Path):
        return load_config(Path(given), {})
    if not isinstance(given, Mapping):
        raise DpzoError(f"config: is a {type(given).__name__}; give a RunConfig, a mapping, or the path of a YAML file")
    flat = {name: value for name, value in given.items() if "." in str(name)}
    groups = {name: value for name, value in given.items() if name not in flat}
    if not flat:
        return parse_config(groups)
    nested = {f"{group}.{field}": value for group, fields in groups.items() for field, value in dict(fields).items()}
    return load_config(None, {**nested, **flat})


def dump_config(config: RunConfig) -> str:
    """YAML of every value, in the order of the classes."""
    return dump_tree(config.model_dump(mode="json"))


def dump_tree(tree: Mapping[str, Any]) -> str:
    """YAML of a config's values, in their order: the one spelling of a run's config.yaml."""
    readable = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    # A few characters (U+0085, U+2028 …) count as line ends in YAML and come back as others unless they are escaped.
    return readable if yaml.safe_load(readable) == tree else yaml.safe_dump(tree, sort_keys=False)


def derived_fields(chosen: RunConfig, filled: RunConfig) -> tuple[str, ...]:
    """Names (`group.field`) of the fields that `chosen` leaves open and `filled` does not."""
    return tuple(
        f"{group}.{field}"
        for group, fields in chosen.model_dump().items()
        for field, value in fields.items()
        if value is None and getattr(getattr(filled, group), field) is not None
    )


def with_open_fields(config: RunConfig, names: Sequence[str]) -> RunConfig:
    """A copy with the named fields (`group.field`) open again. DpzoError for what is no field or may not be open."""
    tree = config.model_dump()
    for name in names:
        group, _, field = str(name).partition(".")
        if field not in tree.get(group, {}):
            raise DpzoError(f"{name}: no such field of a config")
        tree[group][field] = None
    return parse_config(tree)


def with_values(config: RunConfig, **groups: Mapping[str, Any]) -> RunConfig:
    """A copy with some fields replaced, validated anew: `with_values(config, training={"smoothing": 0.01})`."""
    tree = config.model_dump()
    for group, values in groups.items():
        tree[group] = {**tree[group], **values}
    return parse_config(tree)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DpzoError(f"--config {path}: {error.strerror}") from None
    except ValueError:
        raise DpzoError(f"--config {path}: not a YAML file {PLAIN}") from None
    if not isinstance(tree, dict) or not all(isinstance(group, dict) for group in tree.values()):
        raise DpzoError(f"--config {path}: expected groups (model, data, privacy, training) of fields")
    return tree


def _assign(tree: dict[str, Any], name: str, value: Any) -> None:
    group, separator, field = name.partition(".")
    if not separator or not field or "." in field:
        raise DpzoError(
            f"--set {name}: expected group.field=value with group one of {', '.join(RunConfig.model_fields)}"
        )
    if group not in RunConfig.model_fields:
        raise DpzoError(f"--set {name}: no group of that name; there are {', '.join(RunConfig.model_fields)}")
    tree.setdefault(group, {})[field] = value
