"""`dpzo verify` and `dpzo sign`: a run checked by someone who did not make it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpzo.cli.endings import ending_well

if TYPE_CHECKING:
    from dpzo.verify import Report

NOT_VERIFIED = 1
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
RunFolder = Annotated[Path, typer.Argument(help="A folder that dpzo train wrote.")]


def verify(
    run: RunFolder,
    base: Annotated[str | None, typer.Option(help="The base model's folder or hub name, if not the run's.")] = None,
    key: Annotated[Path | None, typer.Option(help="The signer's OpenSSH public key: a .pub file.")] = None,
    as_json: Json = False,
) -> None:
    """Verify a run independently, without the private data: journal, ε, card, weights, signature.

    Exit 0 if all checks hold, 1 if not.
    """
    with ending_well(None, resumable=False):
        from dpzo.cli.checks import check_base
        from dpzo.cli.screen import print_json, teller

        if base is not None:
            check_base(base)
        from dpzo.run.run import Run

        report = Run(run).verify(base=base, key=key, tell=teller(quiet=as_json))
    if as_json:
        print_json(report.to_dict())
    else:
        _show(report)
    if not report.ok:
        raise typer.Exit(NOT_VERIFIED)


def sign(
    run: RunFolder,
    key: Annotated[Path, typer.Option(help="OpenSSH private key; ssh-keygen -t ed25519 creates one.")],
) -> None:
    """Sign a run's journal, card and weights with ssh-keygen; writes journal.sums and journal.sig."""
    with ending_well(run, resumable=False):
        from dpzo.cli.screen import print_line
        from dpzo.verify import sign as signed

        path = signed(run, key)
    print_line(f"signature: {path}; publish your public key with the run")


_VERDICTS = {True: "ok", False: "FAILED", None: "-"}


def _show(report: Report) -> None:
    from dpzo.cli.screen import print_line

    for check in report.checks:
        print_line(f"{check.name:<18} {_VERDICTS[check.ok]:<7} {check.detail}")
    for finding in report.findings:
        print_line(f"finding: {finding}")
    for left in report.not_checked:
        print_line(f"not checked: {left}")
    if report.first_bad is None:
        found = len(report.findings)
        print_line(
            "verified: all applicable checks passed"
            if not found
            else f"verified, with {found} {'finding' if found == 1 else 'findings'} stated on the card (see above)"
        )
    else:
        print_line(f"NOT verified; first failure: {report.first_bad}")
