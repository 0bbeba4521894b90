"""What a campaign shows: progress with time left on stderr, the ranking on stdout."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from crystorus.hull.assessing import RankedPhase
from crystorus.hull.relaxation import USABLE

_SHOWN = 25


@contextmanager
def stage_progress(stage: str) -> Iterator[Callable[[float, int], None]]:
    """Show a bar with time left on stderr; yields the way to move it: (done, total)."""
    console = Console(stderr=True)
    columns = (
        TextColumn("[bold]{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # The speed of the first relaxations says little: look back over the last half hour.
    with Progress(
        *columns, console=console, disable=not console.is_terminal, speed_estimate_period=1800
    ) as bars:
        task = bars.add_task(stage, total=None)
        yield lambda done, total: bars.update(task, completed=round(done, 1), total=total)


def show_ranking(phases: Sequence[RankedPhase], counts: Mapping[str, int]) -> None:
    """Print the best phases and the figures of the campaign."""
    if sys.stdout.isatty():
        Console().print(_table(phases))
    else:
        for phase in [p for p in phases if p.status in USABLE][:_SHOWN]:
            typer.echo("\t".join(_cells(phase)))
    typer.echo(", ".join(f"{name}: {n}" for name, n in counts.items()))


def _table(phases: Sequence[RankedPhase]) -> Table:
    ranked = [phase for phase in phases if phase.energy_per_atom is not None]
    table = Table(box=None, header_style="bold", pad_edge=False)
    names = (
        "formula",
        "E above hull",
        "space group",
        "volume",
        "novelty",
        "found",
        "start",
        "name",
    )
    for name in names:
        right = name in ("E above hull", "volume", "found")
        table.add_column(name, justify="right" if right else "left")
    for phase in ranked[:_SHOWN]:
        table.add_row(*_cells(phase))
    if len(ranked) > _SHOWN:
        table.caption = f"… and {len(ranked) - _SHOWN} more in the table"
    return table


def _cells(phase: RankedPhase) -> tuple[str, ...]:
    verdict = f"{phase.novelty.verdict} {phase.novelty.id}".strip() if phase.novelty else ""
    if phase.held_out:
        verdict += f"; held-out {phase.held_out}"
    return (
        phase.formula,
        f"{(phase.e_above_hull or 0.0) + 0.0:+.3f} eV",
        phase.space_group[0],
        f"{phase.volume_change or 0.0:+.1%}",
        verdict,
        str(phase.found),
        phase.provenance.start,
        phase.name,
    )
