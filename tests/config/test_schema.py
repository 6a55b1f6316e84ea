"""Configs: which source wins, what an error says and does not say, and defaults that leave a choice alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpzo.config.reading import derived_fields, dump_config, load_config, parse_config, with_open_fields, with_values
from dpzo.config.schema import RunConfig
from dpzo.errors import DpzoError

SECRET = "zxqv"
"""What a user may have pasted into an option by mistake; no message may show it."""

LEAST: dict[str, Any] = {"model": {"name": "m"}, "privacy": {"delta": 1e-5}}
OPTIONS = {"model.name": "m", "privacy.delta": 1e-5}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode())  # as write_durably does: line ends stay what they are
    return path


def test_assignments_win_over_options_and_options_over_the_file(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "model: {name: from-file}\n"
        "privacy: {delta: 1e-5, steps: 1, epsilon: 1}\n"
        "training: {seed: 1, smoothing: 0.5, schedule: linear}\n",
    )
    config = load_config(
        path,
        {"privacy.steps": 2, "training.seed": 2, "data.labels": ["a", "b"]},
        ["training.seed=3", "training.smoothing=0.25"],
    )
    assert config.model.name == "from-file"
    assert config.privacy.delta == 1e-5  # YAML 1.1 reads this spelling as a text
    assert (config.privacy.epsilon, config.privacy.steps) == (1.0, 2)
    assert (config.training.seed, config.training.smoothing, config.training.schedule) == (3, 0.25, "linear")
    assert config.data.labels == ("a", "b")
    assert config.data.text_column == "text"


def test_a_later_assignment_wins() -> None:
    assert load_config(None, OPTIONS, ["training.seed=3", "training.seed=4"]).training.seed == 4


def test_an_assignment_may_hold_an_equals_sign_and_any_yaml() -> None:
    config = load_config(None, OPTIONS, ["data.template='{text} = '", "data.labels=[x, 'y=z']", "privacy.tuning=a=b"])
    assert config.data.template == "{text} = "
    assert config.data.labels == ("x", "y=z")
    assert config.privacy.tuning == "a=b"


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
TREES = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries({"name": NAMES}, optional={"trainable": NAMES, "lora_rank": st.integers(1, 99)}),
        "privacy": st.fixed_dictionaries(
            {"delta": st.floats(0, 1, exclude_max=True)},
            optional={
                "epsilon": POSITIVE,
                "num_examples": st.one_of(st.integers(min_value=1), st.just("from-file")),
                "clip_norm": POSITIVE,
                "tuning": NAMES,
            },
        ),
        "data": st.fixed_dictionaries(
            {}, optional={"labels": st.lists(NAMES, max_size=4), "unit_column": NAMES, "template": NAMES}
        ),
        "training": st.fixed_dictionaries({}, optional={"seed": st.integers(0, 2**63 - 1), "smoothing": POSITIVE}),
    }
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_a_dumped_config_is_read_back_exactly(tmp_path: Path, tree: dict[str, Any]) -> None:
    config = parse_config(tree)
    path = tmp_path / "run.yaml"
    path.write_bytes(dump_config(config).encode())
    assert load_config(path, {}) == config
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("text", ["\x85", "a\u2028b", "é\u0301🙂", "\n\r\n", " lead", "yes", "1e-5", "\0\x7f"])
def test_a_template_of_any_characters_is_read_back(tmp_path: Path, text: str) -> None:
    config = parse_config({**LEAST, "data": {"template": text, "labels": [text, "null"]}})
    assert load_config(written(tmp_path, dump_config(config)), {}) == config


def test_a_config_in_any_script_stays_readable() -> None:
    assert "Größe: {text}" in dump_config(parse_config({**LEAST, "data": {"template": "Größe: {text}"}}))


def test_open_fields_are_named_and_opened_again() -> None:
    chosen = parse_config({**LEAST, "training": {"smoothing": 0.5}})
    filled = with_values(chosen, privacy={"steps": 7}, training={"learning_rate": 0.1}, data={"max_length": 8})
    names = derived_fields(chosen, filled)
    assert names == ("data.max_length", "privacy.steps", "training.learning_rate")
    assert with_open_fields(filled, names) == chosen
    assert with_open_fields(filled, ()) == filled


@pytest.mark.parametrize("name", ["training", "training.rate", "nothing.steps", "privacy.delta", "", 7])
def test_only_fields_that_may_be_open_are_opened(name: Any) -> None:
    with pytest.raises(DpzoError):
        with_open_fields(parse_config(LEAST), [name])


def test_a_config_is_frozen() -> None:
    config = parse_config(LEAST)
    with pytest.raises(ValueError, match="frozen"):
        config.privacy.delta = 0.5
    assert with_values(config, privacy={"delta": 0.5}).privacy.delta == 0.5
    assert config.privacy.delta == 1e-5


BAD: list[tuple[str, Any, str]] = [
    ("privacy.epsilon", 0, "--epsilon (privacy.epsilon)"),
    ("privacy.epsilon", -1, "--epsilon (privacy.epsilon)"),
    ("privacy.epsilon", math.nan, "--epsilon (privacy.epsilon)"),
    ("privacy.epsilon", math.inf, "--epsilon (privacy.epsilon)"),
    ("privacy.epsilon", SECRET, "--epsilon (privacy.epsilon)"),
    ("privacy.epsilon", True, "--epsilon (privacy.epsilon)"),
    ("privacy.noise_multiplier", 0, "--noise-multiplier"),
    ("privacy.delta", 1, "--delta (privacy.delta)"),
    ("privacy.delta", -1e-9, "--delta (privacy.delta)"),
    ("privacy.delta", None, "--delta (privacy.delta)"),
    ("privacy.clip_norm", 0, "--clip-norm (privacy.clip_norm)"),
    ("privacy.clip_norm", math.inf, "--clip-norm"),
    ("privacy.steps", 0, "--steps (privacy.steps)"),
    ("privacy.steps", 1.5, "--steps (privacy.steps)"),
    ("privacy.steps", True, "--steps (privacy.steps)"),
    ("privacy.num_directions", 0, "--num-directions"),
    ("privacy.num_examples", SECRET, "--num-examples (privacy.num_examples)"),
    ("privacy.num_examples", 0, "--num-examples (privacy.num_examples)"),
    ("privacy.num_examples", True, "--num-examples (privacy.num_examples)"),
    ("privacy.expected_batch_size", 0, "--expected-batch-size"),
    ("training.seed", -1, "--seed (training.seed)"),
    ("training.seed", 2**63, "--seed (training.seed)"),
    ("training.smoothing", 0, "--smoothing (training.smoothing)"),
    ("training.learning_rate", SECRET, "--learning-rate (training.learning_rate)"),
    ("training.schedule", SECRET, "training.schedule"),
    ("training.directions", SECRET, "training.directions"),
    ("training.average", 1.5, "training.average"),
    ("training.checkpoint_every", 1000, "training.checkpoint_every"),
    ("data.kind", SECRET, "--kind (data.kind)"),
    ("data.labels", SECRET, "--labels (data.labels)"),
    ("data.labels", [{"a": SECRET}, "b"], "--labels (data.labels)"),
    ("data.max_length", 0, "--max-length (data.max_length)"),
    ("data.template", [SECRET], "--template (data.template)"),
    ("data.text_column", 7, "--text-column (data.text_column)"),
    ("model.name", [SECRET], "--model (model.name)"),
    ("model.lora_rank", 0, "--lora-rank"),
]


@pytest.mark.parametrize(("name", "value", "option"), BAD)
def test_an_error_names_the_option_and_not_the_value(name: str, value: Any, option: str) -> None:
    with pytest.raises(DpzoError) as caught:
        load_config(None, {**OPTIONS, name: value})
    text = str(caught.value)
    assert text.startswith(option)
    assert SECRET not in text
    assert "\n" not in text
    assert "pydantic" not in text
    assert caught.value.__suppress_context__


def test_an_unknown_field_or_group_is_named(tmp_path: Path) -> None:
    with pytest.raises(DpzoError, match=r"training\.smothing: .*smoothing"):
        load_config(None, OPTIONS, [f"training.smothing={SECRET}"])
    with pytest.raises(DpzoError, match=r"--set trainig\.seed: no group of that name; there are model, data, privacy"):
        load_config(None, OPTIONS, ["trainig.seed=1"])
    with pytest.raises(DpzoError, match=r"trainig: .*training"):
        load_config(written(tmp_path, "trainig: {seed: 1}\n"), OPTIONS)


@pytest.mark.parametrize("assignment", ["seed", "seed=1", "=1", "training.=1", "training.seed.deep=1", ".seed=1"])
def test_an_assignment_of_another_form_is_explained(assignment: str) -> None:
    with pytest.raises(DpzoError, match=r"--set .*group"):
        load_config(None, OPTIONS, [assignment])


def test_an_assignment_that_is_no_yaml_is_named_without_its_value() -> None:
    with pytest.raises(DpzoError, match=r"--set data\.template: the value is not YAML") as caught:
        load_config(None, OPTIONS, [f"data.template=[{SECRET}"])
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: [", "not a YAML file"),
        (b"\xff\xfe\x00", "not a YAML file"),
        (b"", "expected groups"),
        (b"- 1\n", "expected groups"),
        (b"zxqv\n", "expected groups"),
        (b"training:\n", "expected groups"),
        (b"training: zxqv\n", "expected groups"),
        (b"a: !!python/object/apply:os.getcwd []\n", "not a YAML file"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(DpzoError, match=message) as caught:
        load_config(path, OPTIONS)
    assert str(path) in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DpzoError, match=r"--config .*none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml", OPTIONS)


def test_what_must_be_given_is_asked_for() -> None:
    with pytest.raises(DpzoError, match="--model"):
        load_config(None, {"privacy.delta": 1e-5})
    with pytest.raises(DpzoError, match="--delta"):
        load_config(None, {"model.name": "m"})


def test_a_config_names_no_private_file() -> None:
    fields = {f"{group}.{name}" for group, field in RunConfig.model_fields.items() for name in _fields(field)}
    assert not {name for name in fields if name.rpartition(".")[2] in {"file", "path", "data", "data_dir", "folder"}}
    assert yaml.safe_load(dump_config(parse_config(LEAST))).keys() == {"model", "data", "privacy", "training"}


def _fields(field: Any) -> list[str]:
    return list(field.annotation.model_fields)
