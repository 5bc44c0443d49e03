"""`python -m tools.mutants`: every mutant against the tests; exit code 1 when one lives."""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import monotonic

import click

from tools.mutants.areas import AREAS
from tools.mutants.runner import Verdict, run


@click.command()
@click.option("--only", default="", help="Only mutants whose area or name contains this.")
@click.option("--jobs", default=2, show_default=True, help="Test processes at a time.")
@click.option("--quick", is_flag=True, help="Without the random operations against the reference model.")
def main(only: str, jobs: int, quick: bool) -> None:
    """Take one check out of the firmware at a time, and see whether a test fails."""
    work = [
        (area, mutant) for area in AREAS for mutant in area.mutants if only in f"{area.name}: {mutant.name}"
    ]
    began = monotonic()
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory(prefix="xenpy-mutants-") as directory:
        for verdict in run(work, Path(directory), jobs, long=not quick):
            verdicts.append(verdict)
            outcome = verdict.killer if verdict.killed else "SURVIVED"
            click.echo(f"{f'{verdict.area}: {verdict.mutant.name}':72} {outcome}")
    lived = [verdict for verdict in verdicts if not verdict.killed]
    for verdict in lived:
        click.echo(f"\n{verdict.area}: {verdict.mutant.name} ({verdict.mutant.file})\n    {verdict.problem}")
    click.echo(f"\n{len(verdicts)} mutants, {len(lived)} survived, {monotonic() - began:.0f} s")
    raise SystemExit(1 if lived or not verdicts else 0)


if __name__ == "__main__":
    main()
