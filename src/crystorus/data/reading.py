"""Which reader a path needs."""

from collections.abc import Iterator
from pathlib import Path

from crystorus.data.arrays import ReadingError
from crystorus.data.sources import FORMATS, Record, cif_records, csv_records, is_csv


def read_records(path: Path) -> Iterator[Record]:
    """Yield one record per structure of a file or folder.

    Raises:
        ReadingError: If the path does not exist, its format is unknown, or it is broken.
    """
    if not path.exists():
        raise ReadingError(f"{path} does not exist: give {FORMATS}")
    if is_csv(path):
        return csv_records(path)
    if path.is_dir() or path.suffix.lower() == ".cif":
        return cif_records(path)
    raise ReadingError(f"{path} is of no known format: give {FORMATS}")
