"""`crystorus templates build`."""

from pathlib import Path


def build(source: Path, library: Path, /, *, workers: int = 1) -> None:
    """Make a library of known crystals for `sample --start templates`.

    Args:
        source: A store, CSV with a cif column, CIFs, extended XYZ, POSCAR or ASE database.
        library: The file to write.
        workers: Processes that parse.
    """
    from crystal_fidelity.files import check_writable
    from crystorus.templates.library import build_library
    from crystorus.terminal import counted, echo, log_skipped, progress

    check_writable(library.parent)
    with progress("reading", "structures") as update:
        built = build_library(source, library, n_workers=workers, progress=update)
    left_out = built.crystals.header["n_skipped"]
    echo(f"{counted(len(built), 'structure')} in {library}, {left_out} left out")
    log_skipped(built.skipped)
