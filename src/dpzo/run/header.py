"""The schema of a journal's header: every field, its type and its range, checked when it is written and when read.

A header from another party is untrusted input that reaches the card and the verifier. Therefore only `tuning`,
`unit_column` and names are free text, each with a maximum length. A replay derives directions, update, parameters and
task again and compares them; this module only requires short plain values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from dpzo.config.bounds import LONGEST_NAME, LONGEST_TEXT, MOST_DIRECTIONS, MOST_STEPS
from dpzo.config.plain import refusing
from dpzo.config.reading import RENAMED, stated_config
from dpzo.errors import DpzoError
from dpzo.privacy import PrivacyPlan, lattice
from dpzo.run.environment import PACKAGES, environment
from dpzo.run.private_count import PrivateCount
from dpzo.zo import DirectionScheme, TrainableParameters

NumExamplesSource = Literal["declared", "task", "from-file", "private-count"]
_MOST_FACTS = 200_000
_DEEPEST = 6


def _fact(value: Any, depth: int = 0) -> Any:
    """A tree of short plain values; ValueError for anything else."""
    if depth > _DEEPEST:
        raise ValueError("is nested too deeply")
    if isinstance(value, dict):
        for name, inner in value.items():
            _short(name)
            _fact(inner, depth + 1)
    elif isinstance(value, list):
        if len(value) > _MOST_FACTS:
            raise ValueError("has too many entries")
        for inner in value:
            _fact(inner, depth + 1)
    elif isinstance(value, str):
        _short(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) < 2**64:
            raise ValueError("holds a number out of range")
    elif value is not None and not isinstance(value, bool):
        raise ValueError("is not a plain value")
    return value


def _short(value: Any) -> None:
    if not isinstance(value, str) or len(value) > LONGEST_NAME or not value.isprintable():
        raise ValueError("holds a text that is too long, or that is not printable")


Facts = Annotated[dict[str, Any], AfterValidator(_fact)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
Name = Annotated[str, Field(max_length=LONGEST_NAME)]
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
ParameterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]{1,512}$")]
Version = Annotated[str, Field(pattern=r"^(absent|[0-9]{1,5}(\.[0-9a-z]{1,12}){0,4}([+-][0-9a-z.]{1,16})?)$")]
Size = Annotated[int, Field(ge=1, le=2**40)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


def _known_packages(value: dict[str, str]) -> dict[str, str]:
    if not value.keys() <= set(PACKAGES):
        raise ValueError(f"names something other than {', '.join(PACKAGES)}")
    return value


class _Base(_Part):
    name: Name
    fingerprint: Hash
    revision: Name | None = None
    architecture: Word | None = None


class _Prefix(_Part):
    layers: Annotated[int, Field(ge=0, le=100_000)]
    keep: Word


class _Evaluation(_Part):
    """How losses were evaluated. It does not affect the weights, so a replay does not derive it."""

    microbatch_size: Annotated[int, Field(ge=1, le=2**20)]
    isolation: Word
    head_block: Annotated[int, Field(ge=1, le=2**24)] | None = None
    prefix: _Prefix | None = None
    variants: Annotated[int, Field(ge=1, le=2**16)] = 1
    planned_passes: Size | None = None


class _Plan(_Part):
    """Types and ranges; `PrivacyPlan` decides whether the plan is valid."""

    num_examples: Annotated[int, Field(ge=1, le=2**53)]
    sampling: Word
    sampling_prob: Annotated[float, Field(gt=0, le=1)]
    mechanism: Word
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    noise: dict[str, Any] | None = None
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)]
    num_directions: Annotated[int, Field(ge=1, le=MOST_DIRECTIONS)]
    delta: Annotated[float, Field(ge=0, lt=1)]
    relation: Word


class _Count(_Part):
    plan: _Plan
    values: Annotated[list[Annotated[int, Field(ge=-(2**62), le=2**62)]], Field(min_length=1, max_length=1)]


class _Header(_Part):
    """The fields common to all headers."""

    base: _Base
    num_examples_source: NumExamplesSource
    unit_column: Name | None
    tuning: Text
    directions: Facts
    estimator: Word
    update: Facts
    parameters: list[tuple[ParameterName, list[Size], Word]]
    evaluation: _Evaluation
    nonprivate_uses: Annotated[list[Name], Field(max_length=100)]
    environment: Annotated[dict[str, Version], AfterValidator(_known_packages)]
    plan: _Plan
    lattice_unit: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    lattice_bits: Annotated[int, Field(ge=0, le=64)]
    lattice_bound: Annotated[int, Field(ge=1, le=2**62)]
    secret_randomness: bool


class _TextHeader(_Header):
    """A run of `dpzo train`."""

    config: dict[str, dict[str, Any]]
    derived: list[Word | Annotated[str, Field(pattern=r"^[a-z]+\.[a-z_]+$")]]
    task: Facts
    count: _Count | None
    initialisation: Facts


class _ModuleHeader(_Header):
    """A run of `dpzo.fit`."""

    settings: Facts


def run_header(
    plan: PrivacyPlan,
    *,
    has_guarantee: bool,
    parameters: TrainableParameters,
    scheme: DirectionScheme,
    **facts: Any,
) -> dict[str, Any]:
    """The checked header of a run: plan, lattice, trained parameters, directions, and the caller's `facts`.

    Raises: DpzoError as `check_header` does.
    """
    header = journal_header(
        plan,
        has_guarantee,
        {
            **facts,
            "directions": scheme.description,
            "parameters": described(parameters),
            "nonprivate_uses": [],
            "environment": environment(),
        },
    )
    check_header(header)
    return header


def journal_header(plan: PrivacyPlan, has_guarantee: bool, public: Mapping[str, Any]) -> dict[str, Any]:
    """Plan, lattice, whether the noise was secret, and the caller's public facts."""
    grid = lattice(plan.mechanism, plan.clip_norm, plan.num_directions)
    return {
        **public,
        "plan": plan.to_dict(),
        "lattice_unit": grid.unit,
        "lattice_bits": grid.bits,
        "lattice_bound": grid.bound,
        "secret_randomness": has_guarantee,
    }


def described(parameters: TrainableParameters) -> list[list[Any]]:
    """Name, shape and dtype of each trained tensor."""
    each = zip(parameters.names, parameters.shapes, parameters.dtypes, strict=True)
    return [[name, list(shape), dtype] for name, shape, dtype in each]


def check_header(header: Mapping[str, Any]) -> None:
    """Reject a header that no run writes: an unknown field, a wrong type or range, or a non-canonical spelling.

    Raises:
        DpzoError: naming the field, never its value.
    """
    fields = _from_0_1(header)
    schema = _TextHeader if "config" in fields else _ModuleHeader
    try:
        # Through JSON text, so that strict types apply to JSON values, where a tuple is a list.
        schema.model_validate_json(canonical(fields))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DpzoError(f"header: {place[:200]}: {first['msg']}; no run of dpzo writes that") from None
    except (ValueError, RecursionError):
        raise DpzoError("header: holds a number that JSON does not know; no run of dpzo writes that") from None
    with refusing("header: its plan, count or config is none that dpzo makes"):
        for name, spelled in _spelled_anew(fields):
            if canonical(spelled) != canonical(fields[name]):
                raise DpzoError(f"header: {name} is spelled in another way than dpzo writes it")


def _spelled_anew(fields: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Parts of a header as written again after reading, which exposes `true` for 1, 2.0 for 2, or extra keys."""
    found: list[tuple[str, Any]] = [("plan", PrivacyPlan.from_dict(fields["plan"]).to_dict())]
    if fields.get("count") is not None:
        found.append(("count", PrivateCount.from_dict(fields["count"]).to_dict()))
    if "config" in fields:
        found.append(("config", stated(stated_config(fields["config"]).model_dump(mode="json"), fields["config"])))
    return found


def stated(config: Mapping[str, Mapping[str, Any]], of: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The fields of `config` that the config `of` has, by the names in `of`; a later version has more fields."""
    old = {new: name for name, new in RENAMED.items()}
    return {
        group: {
            name if name in of[group] else old[name]: value
            for name, value in fields.items()
            if name in of[group] or (group == "training" and old.get(name) in of[group])
        }
        for group, fields in config.items()
        if group in of
    }


def canonical(value: Any) -> str:
    """The canonical JSON in which header values are compared. ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def is_of_0_1(header: Mapping[str, Any]) -> bool:
    """Whether version 0.1.0 wrote the header.

    That version did not distinguish derived config fields from chosen ones, and recorded that a module's losses had
    passed.
    """
    return "derived" not in header if "config" in header else header["evaluation"]["isolation"] == "passed"


def _from_0_1(header: Mapping[str, Any]) -> Mapping[str, Any]:
    """The header as the current version would have written it; the only place that converts older headers."""
    return {**header, "derived": header.get("derived", [])} if "config" in header else header
