"""Rows of one table measured at different times, each with the preset it is compared with.

Parts are never mixed: a difference is taken between rows of one measurement.
"""

from collections.abc import Set

from crystorus.reproduction.errors import PaperError
from crystorus.reproduction.settings import Tree

EARLIER = "earlier"
_SAME = ("budget", "inputs")


def parts(report: Tree) -> list[Tree]:
    """Return the measurements a result is made of, the earliest first."""
    last = {key: value for key, value in report.items() if key != EARLIER}
    return [*report.get(EARLIER, ()), last]


def part_with(report: Tree, name: str) -> Tree | None:
    """Return the last measurement of a row, None where it was never measured."""
    for part in reversed(parts(report)):
        if any(row["name"] == name for row in part["rows"]):
            return part
    return None


def beside(new: Tree, published: Tree) -> Tree:
    """Put a measurement of some rows beside the published rows that it has not measured again.

    A row that was measured again is dropped from the earlier part, unless it is the preset that
    other rows there are compared with.

    Raises:
        PaperError: If rows would stand beside rows of another budget or of other crystals.
    """
    names = {row["name"] for row in new["rows"]}
    earlier = [left for part in parts(published) if (left := _without(part, names))["rows"]]
    for part in earlier:
        for key in _SAME:
            if part[key] != new[key]:
                rows = ", ".join(row["name"] for row in part["rows"])
                raise PaperError(
                    f"the published rows {rows} have other {key}: measure them too, or "
                    "choose another --docs"
                )
    return new | {EARLIER: earlier} if earlier else new


def _without(part: Tree, names: Set[str]) -> Tree:
    kept = [row for row in part["rows"] if row["name"] not in names]
    needed = {row.get("preset") for row in kept} | {row["name"] for row in kept}
    return part | {"rows": [row for row in part["rows"] if row["name"] in needed]}
