"""What the command line shows: progress and complaints on stderr, results on stdout."""

import errno
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

INTERRUPTED = 130
FAILED = 1


@contextmanager
def plain_errors(*, debug: bool, after_interrupt: str) -> Iterator[None]:
    """End the program with one sentence and a non-zero exit instead of a traceback.

    Args:
        debug: Let the traceback through.
        after_interrupt: What Ctrl-C leaves behind, and how to go on.

    Raises:
        typer.Exit: For any error inside the block.
    """
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        say("stopped", after_interrupt)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if debug:
            raise
        say("error", describe(error))
        raise typer.Exit(FAILED) from None


def describe(error: Exception) -> str:
    """Put an error into one sentence: our own as they are, others with what they are."""
    if type(error).__module__.startswith("crystorus."):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        remedy = "make room and try again" if error.errno == errno.ENOSPC else "check the path"
        return f"{error.filename or 'a file'}: {error.strerror}; {remedy}"
    return (
        f"unexpected {type(error).__name__}: {error}. Run it as `crystorus --debug …` for the "
        "traceback, and report it"
    )


def say(kind: str, message: str) -> None:
    """Print one line on stderr, its kind in colour where there are colours."""
    styles = {"error": "bold red", "warning": "bold yellow", "stopped": "bold yellow"}
    line = Text.assemble((f"{kind}: ", styles.get(kind, "bold")), message)
    Console(stderr=True, soft_wrap=True).print(line)


class _Rate(ProgressColumn):
    """Things per second."""

    def __init__(self, things: str) -> None:
        super().__init__()
        self._things = things

    def render(self, task: Task) -> Text:
        """Draw the column."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.3g} {self._things}/s" if speed else "", style="cyan")


@contextmanager
def crystal_progress(total: int, *, kept: int = 0) -> Iterator[Callable[[float], None]]:
    """Show a bar with crystals/s and time left on stderr; yields the way to move it."""
    with bar("sampling", "crystals", done=kept, total=total) as progress:
        yield lambda done: progress(round(done, 2), total)


def show_summary(rows: Sequence[Mapping[str, str]], *, made: int, seconds: float) -> None:
    """Print a table of the run, one line per cell content; one plain line if not a terminal."""
    if not sys.stdout.isatty():
        valid = sum(row["valid"] == "True" for row in rows)
        typer.echo(f"{len(rows)} crystals, {valid} valid, {made} made in {seconds:.1f} s")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("formula", "units", "atoms", "crystals", "valid", "density", "space groups"):
        table.add_column(name, justify="left" if name in ("formula", "space groups") else "right")
    groups: dict[tuple[str, str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["formula"], row["formula_units"], row["n_atoms"]), []).append(row)
    for key, members in list(groups.items())[:30]:
        table.add_row(*key, *_group_cells(members))
    console = Console()
    console.print(table)
    if len(groups) > 30:
        console.print(f"… and {len(groups) - 30} more compositions in the table", style="dim")
    console.print(f"{made} crystals made in {seconds:.1f} s", style="dim")


def _group_cells(members: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    valid = sum(row["valid"] == "True" for row in members)
    densities = [float(row["density"]) for row in members if row["density"]]
    spread = f"{min(densities):.2f}–{max(densities):.2f}" if densities else ""
    symbols = Counter(row["space_group"] for row in members if row["space_group"])
    named = ", ".join(s if n == 1 else f"{s} ×{n}" for s, n in symbols.most_common(3))
    more = len(symbols) - 3
    return str(len(members)), str(valid), spread, named + (f" +{more}" if more > 0 else "")


def tell_of_versions(what: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Warn of programs that are not those a run or a campaign was begun with."""
    for name, version in before.items():
        if now.get(name) != version:
            say("warning", f"the {what} was begun with {name} {version}, now it is {now.get(name)}")


@contextmanager
def counter(what: str) -> Iterator[Callable[[int], None]]:
    """Show a growing count on stderr; yields the way to set it."""
    console = Console(stderr=True)
    columns = (TextColumn(f"[bold]{what}"), TextColumn("{task.completed}"), _Rate("structures"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done: bars.update(task, completed=done)


@contextmanager
def bar(
    what: str, things: str, *, done: float = 0, total: float | None = None
) -> Iterator[Callable[[float, float], None]]:
    """Show a bar with its rate and the time left on stderr; yields the way to move it."""
    console = Console(stderr=True)
    columns = (
        TextColumn(f"[bold]{what}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(things),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=total, completed=done)  # type: ignore[arg-type]
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def download_progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """Show bytes, speed and time left of each file on stderr; yields the way to set them."""
    console = Console(stderr=True)
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield show


def show_store(path: object, kept: int, skipped: Sequence[tuple[str, str]]) -> None:
    """Print how many structures a store holds, and why others were left out."""
    typer.echo(f"{kept} structures in {path}, {len(skipped)} left out")
    for name, reason in skipped[:10]:
        say("left out", f"{name}: {reason}")
    if len(skipped) > 10:
        say("left out", f"… and {len(skipped) - 10} more")


def show_card(title: str, card: Mapping[str, Any]) -> None:
    """Print a model card, nested values indented."""
    console = Console()
    console.print(Text(title, style="bold"))
    for depth, name, value in _lines(card, 0):
        console.print(Text.assemble("  " * (depth + 1), (name, "cyan"), f"  {value}"))


def _lines(card: Mapping[str, Any], depth: int) -> Iterator[tuple[int, str, str]]:
    for name, value in card.items():
        if isinstance(value, Mapping):
            yield depth, str(name), ""
            yield from _lines(value, depth + 1)
        elif isinstance(value, list) and len(value) > 12:
            yield depth, str(name), f"{len(value)} values"
        else:
            yield depth, str(name), f"{value:.4g}" if isinstance(value, float) else str(value)
