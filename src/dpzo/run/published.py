"""The content of a run's config.yaml and plan.json, as functions of the journal's header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpzo.config.reading import dump_tree, stated_config, with_open_fields
from dpzo.config.schema import RunConfig
from dpzo.config.solve import plan_summary
from dpzo.privacy import PrivacyPlan
from dpzo.run.header import stated
from dpzo.run.private_count import PrivateCount


def chosen_config(header: Mapping[str, Any]) -> RunConfig:
    """The config that the user chose, from a journal's header, with derived fields open: the content of config.yaml.

    Headers of version 0.1.0 do not distinguish derived values from chosen ones, and neither does their config.yaml.
    """
    return with_open_fields(stated_config(header["config"]), header.get("derived", ()))


def derived_note(header: Mapping[str, Any]) -> str:
    """One line with the values that a run derived; empty if there are none."""
    values = {name: header["config"][name.partition(".")[0]][name.partition(".")[2]] for name in header["derived"]}
    said = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items())
    return f"derived from the plan and the model: {', '.join(said)}" if values else ""


def config_text(header: Mapping[str, Any]) -> str:
    """The content of config.yaml: a function of the journal's header, byte for byte."""
    return dump_tree(stated(chosen_config(header).model_dump(mode="json"), header["config"]))


def plan_facts(plan: PrivacyPlan, header: Mapping[str, Any]) -> dict[str, Any]:
    """The content of plan.json: a function of the journal's header, whose plan is `plan`.

    It includes whether the run has a guarantee, because an ε alone would be read as one.
    """
    return {**plan_summary(plan), "guarantee": promises(header), "epsilon_with_count": whole_epsilon(plan, header)}


def whole_epsilon(plan: PrivacyPlan, header: Mapping[str, Any]) -> float:
    """ε of the whole run: the plan's, plus that of a private count."""
    count = header.get("count")
    return plan.epsilon + (0.0 if count is None else PrivateCount.from_dict(count).epsilon)


def promises(header: Mapping[str, Any]) -> bool:
    """Whether the plan's ε may be claimed, as far as is known before the run starts."""
    return bool(header["secret_randomness"]) and header["num_examples_source"] != "from-file"
