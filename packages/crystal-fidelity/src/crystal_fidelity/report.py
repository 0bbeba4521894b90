"""Results to a table on screen and to JSON."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from crystal_fidelity.files import whole_file
from crystal_fidelity.scores import Score
from crystal_fidelity.structures import Entry, ReadFailure

MAX_DECIMALS = 6
MAX_NAMED = 10
"""Failures named on screen; JSON and HTML name all."""


def score_table(scores: Sequence[Score], title: str = "") -> Table:
    """Return the scores as a rich table that fits 80 columns; numbers point to the protocols."""
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, 1, 0, 0)
    table.add_column("", justify="right")
    table.add_column("metric", overflow="fold")
    for column in ("value", "± 1 s.e.", "real data"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    parent = ""
    for index, score in enumerate(scores, start=1):
        n = f"{score.n_generated}"
        n += f"/{score.n_reference}" if score.n_reference is not None else ""
        name = score.name
        if parent and name.startswith(f"{parent}, "):
            name = "  " + name.removeprefix(f"{parent}, ")
        else:
            parent = name
        table.add_row(str(index), name, *shown(score), n)
    return table


def digits(value: float | None, significant: int = 4) -> str:
    """Return a number for a table: nothing for None, "none" for NaN."""
    if value is None:
        return ""
    return "none" if math.isnan(value) else f"{value:.{significant}g}"


def shown(score: Score) -> tuple[str, str, str, str]:
    """Return value, error, real data and unit for a table.

    Rates are in per cent; the error has two digits, and the others as many decimals as it.
    """
    scale, unit = (100.0, "%") if score.rate else (1.0, score.unit)
    value, error, real = (
        None if number is None else scale * number
        for number in (score.value, score.uncertainty, score.real)
    )
    if not error or not math.isfinite(error):
        return digits(value), digits(error, 2), digits(real), unit
    places = max(0, 1 - math.floor(math.log10(error)))
    if places > MAX_DECIMALS:
        return digits(value, 3), digits(error, 2), digits(real, 3), unit
    return _fixed(value, places), _fixed(error, places), _fixed(real, places), unit


def _fixed(value: float | None, places: int) -> str:
    finite = value is not None and math.isfinite(value)
    return f"{value:.{places}f}" if finite else digits(value)


def print_scores(scores: Sequence[Score], title: str = "", console: Console | None = None) -> None:
    """Print the table and, under it, the protocol of each row."""
    screen = console or Console()
    screen.print(score_table(scores, title))
    for index, score in enumerate(scores, start=1):
        line = f"{index:3d}  {score.name}: {protocol_text(score)}"
        screen.print(line, markup=False, highlight=False)


def protocol_text(score: Score) -> str:
    """Return the protocol with the n of the noise floor, where the row has one."""
    floor_n = score.details.get("n of real against real")
    if floor_n is None:
        return score.protocol
    sizes = " and ".join(str(n) for n in floor_n) if isinstance(floor_n, tuple) else str(floor_n)
    return f"{score.protocol}; real against real: n = {sizes}"


def failure_lines(entries: Sequence[Entry], what: str) -> list[str]:
    """Return lines that name the unreadable structures, the first ten and how many more."""
    failures = [entry for entry in entries if isinstance(entry, ReadFailure)]
    if not failures:
        return []
    lines = [f"{len(failures)} of {len(entries)} {what} structures could not be read:"]
    lines += [f"  {failure.name}: {failure.reason}" for failure in failures[:MAX_NAMED]]
    if len(failures) > MAX_NAMED:
        lines.append(f"  and {len(failures) - MAX_NAMED} more")
    return lines


def write_json(path: str | Path, content: object) -> None:
    """Write JSON; NaN and infinity become null, as JSON has neither."""
    text = json.dumps(_plain(content), indent=1, ensure_ascii=False) + "\n"
    with whole_file(path) as file:
        file.write_text(text, "utf-8")


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int):
        return value
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
