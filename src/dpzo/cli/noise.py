"""`dpzo noise`: which noise costs least at an ε, beside the Gaussian."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]


def noise(
    epsilon: Annotated[float, typer.Option(help="Privacy budget ε.")],
    delta: Annotated[float, typer.Option(help="δ of all releases together, above 0.")],
    sampling_prob: Annotated[
        float, typer.Option(help="Sampling probability q of a unit; 1: every unit in every step.")
    ],
    steps: Annotated[int, typer.Option(help="Number of releases T.")],
    objective: Annotated[
        str, typer.Option(help="Search objective: variance, absolute, or usefulness:γ (γ in clip norms).")
    ] = "variance",
    as_json: Json = False,
) -> None:
    """Search families and a free form for the noise of least variance for one number per step, each with a certified ε.

    Reads no data and spends no ε. Results are kept in the user's cache.
    """
    from dpzo.cli.fields import with_flags
    from dpzo.cli.screen import print_json, print_line, rounded_up
    from dpzo.noise.search import search

    found = search(epsilon, delta, sampling_prob, steps, objective)
    if as_json:
        print_json(found.to_dict())
        return
    ranked = sorted(found.families.items(), key=lambda item: item[1].ratio)
    own = objective != "variance"
    print_line(f"{'noise':<20}" + (f"{'cost ratio':>12}" if own else "") + f"{'variance ratio':>16}{'variance':>12}"
               f"{'ε certified':>14}  parameters")  # fmt: skip
    for name, row in ranked:
        ratio = f"{row.ratio:>12.4f}" if own else ""
        print_line(
            f"{name:<20}{ratio}{row.variance_ratio:>16.4f}{row.variance:>12.6g}"
            f"{rounded_up(row.epsilon_certified, 6):>14}  {_said(row.parameters)}"
        )
    for name, reason in found.refused.items():
        print_line(f"{name:<20}-: {with_flags(reason)}")
    print_line(found.gain)


def _said(parameters: Mapping[str, Any]) -> str:
    plain = {name: f"{value:.5g}" if isinstance(value, float) else str(value) for name, value in parameters.items()}
    return ", ".join(f"{name} {value}" for name, value in plain.items())
