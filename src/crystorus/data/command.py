"""`crystorus data get` and `crystorus data build`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def data_get(
    name: Literal["mp-20"],
    /,
    *,
    folder: Path | None = None,
    split: list[Literal["train", "val", "test"]] | None = None,
    url: str | None = None,
    source: Annotated[Path | None, Parameter(name="--from")] = None,
) -> None:
    """Download a data set and verify it.

    Args:
        name: The data set.
        folder: Where its files go; data/NAME without it.
        split: Which part; can be repeated. Without it train and val.
        url: Address of another copy of the release; without it that of CDVAE.
        source: Take it from disk, not from the network: a folder with train.csv and val.csv, or
            the file of one --split.
    """
    from crystorus.data.mp20 import get_mp20
    from crystorus.terminal import echo, progress

    get = {"mp-20": get_mp20}[name]
    folder = Path("data") / name if folder is None else folder
    splits = split or ["train", "val"]
    with progress("download", "B") as update:
        files = get(
            folder,
            splits=splits,
            base_url=url,
            source=source,
            progress=lambda file, done, total: update(done, total, name=file),
        )
    for file in files:
        echo(file)


def data_build(source: Path, store: Path, /, *, workers: int = 1) -> None:
    """Read, reduce and validate structures into one file to train on.

    Args:
        source: CSV with a cif column, CIFs, extended XYZ, POSCAR or ASE database.
        store: The file to write.
        workers: Processes that parse.
    """
    from crystorus.data.store import build_store
    from crystorus.terminal import counted, echo, log_skipped, progress

    with progress("reading", "structures") as update:
        built = build_store(source, store, n_workers=workers, progress=update)
    echo(f"{counted(len(built), 'structure')} in {store}, {built.header['n_skipped']} left out")
    log_skipped(built.skipped)
