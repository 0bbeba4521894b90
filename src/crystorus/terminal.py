"""What the command line shows: progress and complaints on stderr, results on stdout."""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from crystal_fidelity.commandline import counted, log

__all__ = [
    "Update",
    "counted",
    "echo",
    "log",
    "log_skipped",
    "log_versions",
    "progress",
    "show_card",
    "show_summary",
]


class Update(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: float, total: float | None = None, *, name: str = "") -> None:
        """Set how much is done, of how much, of which of several bars."""


def echo(text: object = "") -> None:
    """Print a result on stdout.

    Args:
        text: What is printed.
    """
    print(text, flush=True)  # noqa: T201


@contextmanager
def progress(
    what: str, unit: str = "", *, done: float = 0, total: float | None = None
) -> Iterator[Update]:
    """Show a bar with its rate and the time left on stderr, if that is a terminal.

    Args:
        what: What is being done.
        unit: What is counted, in the plural; "B" for bytes.
        done: How much is done already.
        total: How much there is; without it a count is shown.

    Yields:
        The way to update it; every new `name` gets a bar of its own.
    """
    from rich import progress as rich_progress
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:  # rich below 14 would end a bar that is not shown with a blank line
        yield lambda *_done, **_name: None
        return
    bytes_too = (rich_progress.DownloadColumn(), rich_progress.TransferSpeedColumn())
    counted = (rich_progress.MofNCompleteColumn(), _rate_column(unit))
    columns = (
        rich_progress.TextColumn("{task.description}", style="bold", markup=False),
        rich_progress.BarColumn(),
        *(bytes_too if unit == "B" else counted),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=console) as bars:
        tasks: dict[str, rich_progress.TaskID] = {}

        def update(done: float, total: float | None = total, *, name: str = "") -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name or what, total=total)
            bars.update(tasks[name], completed=round(done, 2), total=total)

        if total is not None or done:
            update(done, total)
        yield update


def _rate_column(unit: str) -> Any:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Rate(ProgressColumn):
        """Things per second."""

        def render(self, task: Task) -> Text:
            """Draw the column."""
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.3g} {unit}/s" if speed else "", style="cyan")

    return Rate()


def show_summary(rows: Sequence[Mapping[str, str]], *, made: int, seconds: float) -> None:
    """Print what a sampling run made, one line per composition; one line if not a terminal.

    Args:
        rows: Rows of the run's table.
        made: Crystals made now rather than found there.
        seconds: How long that took.
    """
    if not sys.stdout.isatty():
        valid = sum(row["valid"] == "True" for row in rows)
        distinct = sum(not row.get("same_as") for row in rows)
        echo(
            f"{counted(len(rows), 'crystal')}, {valid} valid, {distinct} distinct, {made} made "
            f"in {seconds:.1f} s"
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in (
        "formula",
        "units",
        "atoms",
        "crystals",
        "valid",
        "distinct",
        "density",
        "space groups",
    ):
        table.add_column(name, justify="left" if name in ("formula", "space groups") else "right")
    groups: dict[tuple[str, str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["formula"], row["formula_units"], row["n_atoms"]), []).append(row)
    for key, members in list(groups.items())[:30]:
        valid = sum(row["valid"] == "True" for row in members)
        distinct = sum(not row.get("same_as") for row in members)
        densities = [float(row["density"]) for row in members if row["density"]]
        spread = f"{min(densities):.2f}–{max(densities):.2f}" if densities else ""
        symbols = Counter(row["space_group"] for row in members if row["space_group"])
        named = ", ".join(s if n == 1 else f"{s} ×{n}" for s, n in symbols.most_common(3))
        more = f" +{len(symbols) - 3}" if len(symbols) > 3 else ""
        table.add_row(*key, *map(str, (len(members), valid, distinct)), spread, named + more)
    console = Console(markup=False)
    console.print(table)
    if len(groups) > 30:
        console.print(f"… and {len(groups) - 30} more compositions in the table", style="dim")
    console.print(f"{counted(made, 'crystal')} made in {seconds:.1f} s", style="dim")


def log_versions(what: str, changed: Mapping[str, tuple[str, str]]) -> None:
    """Warn of programs that are not those a run was begun with.

    Args:
        what: The kind of run.
        changed: (then, now) by name, as from `RunFolder.changed_versions`.
    """
    for name, (then, now) in changed.items():
        log("warning", f"the {what} was begun with {name} {then}, now it is {now}")


def log_skipped(skipped: Sequence[tuple[str, str]]) -> None:
    """Say of the first ten structures that were left out why they were, as (name, reason).

    Args:
        skipped: Name and reason of each.
    """
    for name, reason in skipped[:10]:
        log("left out", f"{name}: {reason}")
    if len(skipped) > 10:
        log("left out", f"… and {len(skipped) - 10} more")


def show_card(title: str, card: Mapping[str, Any]) -> None:
    """Print a checkpoint's card, nested values indented.

    Args:
        title: Printed above.
        card: Of a checkpoint, as `read_card` gives it.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    console.print(Text(title, style="bold"))
    for depth, name, value in _lines(card, 1):
        console.print(Text.assemble("  " * depth, (name, "cyan"), f"  {value}"))


def _lines(card: Mapping[str, Any], depth: int) -> Iterator[tuple[int, str, str]]:
    for name, value in card.items():
        if isinstance(value, Mapping):
            yield depth, str(name), ""
            yield from _lines(value, depth + 1)
        elif isinstance(value, list) and value and all(v and isinstance(v, Mapping) for v in value):
            yield depth, str(name), ""
            for item in value:  # a line each, its first value in front
                (first, *rest) = [f"{key} {_text(one)}" for key, one in item.items()]
                yield depth + 1, first, "  ".join(rest)
        elif isinstance(value, list) and len(value) > 12:
            yield depth, str(name), f"{len(value)} values"
        else:
            yield depth, str(name), _text(value)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
