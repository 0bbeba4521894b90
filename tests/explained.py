"""What docs/tables.md says of the columns of every table."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/tables.md"
_SERIES = re.compile(r"`([\w/]+_)1` … `\1(\d)`")


def columns_explained(command):
    """Return the columns that the section of a command explains, in the order of its table."""
    sections = PAGE.read_text(encoding="utf-8").split("\n## ")
    section = next(part for part in sections if f"`{command}`" in part.splitlines()[0])
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    names = []
    for cell in cells:
        every = _SERIES.sub(lambda m: " ".join(f"`{m[1]}{i + 1}`" for i in range(int(m[2]))), cell)
        names += re.findall(r"`([\w/]+)`", every)
    return names
