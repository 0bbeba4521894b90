"""`crystorus view` and `crystorus export`: results in a browser, and inputs of other programs."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from crystorus.errors import RequestError
from crystorus.results.options import ExportOptions, ViewOptions
from crystorus.runs.folder import REMEDY
from crystorus.terminal import counted, echo, log

if TYPE_CHECKING:
    from crystal_fidelity.structures import Crystal

REPORT, PAGE = "report.html", "view.html"
MOST = 400
"""Structures of one page."""


def view(
    source: Path,
    /,
    *,
    options: Annotated[ViewOptions, Parameter(name="*")] = ViewOptions(),  # noqa: B008 - frozen
) -> None:
    """Open results in the browser: a table, and every structure in 3D.

    The page loads nothing from anywhere. A campaign's is its report; another is written.

    Args:
        source: An output folder, a page, or structures: CIF, extxyz, POSCAR, CSV, ASE database.
        options: How.

    Raises:
        RequestError: If it holds no crystals.
        ReadingError: If it cannot be read.
        FileError: If the page cannot be written.
    """
    page = _page_of(source)
    if page is None or options.out or options.best or options.name:
        from crystal_fidelity.files import check_writable, disk_errors, write_atomic
        from crystorus.results.page import results_page_of

        stem = source.name.split(".")[0]
        default = source / PAGE if source.is_dir() else Path("out") / f"view-{stem}.html"
        page = options.out or default
        check_writable(page.parent, remedy=REMEDY)
        text = results_page_of(source, options, most=MOST)
        with disk_errors(page, remedy=REMEDY):
            page.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(page, text)
    echo(page)
    if options.browser:
        import webbrowser

        if not webbrowser.open(page.resolve().as_uri()):
            log("note", f"no browser could be started: open {page} in one")


def _page_of(source: Path) -> Path | None:
    """Return the page that a folder or file is or holds already: a report, or that of compare."""
    if source.suffix == ".html":
        if not source.is_file():
            raise RequestError(f"{source} does not exist: name a folder, a page or structures")
        return source
    if (source / REPORT).is_file():
        return source / REPORT
    pages = [page for page in source.glob("*.html") if page.name != PAGE] if source.is_dir() else []
    return pages[0] if len(pages) == 1 and not (source / "table.csv").is_file() else None


def export(
    source: Path,
    /,
    *,
    options: Annotated[ExportOptions, Parameter(name="*")] = ExportOptions(),  # noqa: B008 - frozen
) -> None:
    """Write crystals as inputs of other programs, in their symmetrised cell, under their names.

    Args:
        source: An output folder, or structures: CIF, extxyz, POSCAR, CSV, ASE database.
        options: Which, and how.

    Raises:
        RequestError: If it holds no crystals.
        ReadingError: If it cannot be read.
        FileError: If a file cannot be written.
    """
    import warnings

    from crystal_fidelity.files import check_writable, disk_errors
    from crystal_fidelity.symmetry import cell_of, dataset
    from crystorus.results.reading import crystals_of, read_results

    kind, stem = f"export-{options.format}", source.name.split(".")[0]
    out = options.out or (source / kind if source.is_dir() else Path("out") / f"{kind}-{stem}")
    check_writable(out, remedy=REMEDY)
    crystals = crystals_of(read_results(source, options))
    if not crystals:
        raise RequestError(f"{source} holds no crystal that can be read: there is nothing to write")
    write, written = _WRITERS[options.format], 0
    with disk_errors(out, remedy=REMEDY), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on pseudopotentials, and of formats that will move
        out.mkdir(parents=True, exist_ok=True)
        for name, crystal in crystals.items():
            data = dataset(crystal, options.symprec)
            cell = crystal
            if data is not None:
                cell = cell_of(data.prim_std_cell if options.primitive else data.std_cell, name)
            try:
                write(cell, out, name)
            except (ValueError, KeyError) as error:  # an element that a set of inputs lacks
                log("left out", f"{name}: {' '.join(str(error).split())[:160]}")
            else:
                written += 1
    if not written:
        raise RequestError(f"no crystal of {source} could be written as {options.format}")
    log("done", f"{counted(written, 'crystal')} as {options.format} in {out}")


def _write_cif(crystal: "Crystal", folder: Path, name: str) -> None:
    from crystal_fidelity.files import write_atomic
    from crystorus.data.convert import join
    from crystorus.data.writers import symmetrised_cif_text

    text = symmetrised_cif_text(join([crystal]), name)
    write_atomic(folder / f"{name}.cif", text)


def _write_poscar(crystal: "Crystal", folder: Path, name: str) -> None:
    from pymatgen.io.vasp import Poscar

    from crystal_fidelity.structures import to_pymatgen

    poscar = Poscar(to_pymatgen(crystal), comment=name, sort_structure=True)
    poscar.write_file(folder / f"{name}.vasp", significant_figures=12)


def _write_qe(crystal: "Crystal", folder: Path, name: str) -> None:
    import io

    import ase.io

    from crystal_fidelity.files import write_atomic
    from crystal_fidelity.structures import to_atoms

    atoms = to_atoms(crystal)
    settings: dict[str, Any] = {
        "control": {"calculation": "vc-relax", "prefix": name, "pseudo_dir": "./pseudo"},
        "system": {"ecutwfc": 60, "ecutrho": 480, "occupations": "smearing", "smearing": "mv",
                   "degauss": 0.01},
        "electrons": {"conv_thr": 1e-9},
    }  # fmt: skip
    stream = io.StringIO()
    ase.io.write(
        stream, atoms, format="espresso-in", input_data=settings, kspacing=0.04,
        pseudopotentials={symbol: f"{symbol}.upf" for symbol in set(atoms.symbols)},
        crystal_coordinates=True,
    )  # fmt: skip
    # ASE writes every namelist that pw.x has; it takes these two for unknown cards.
    text = stream.getvalue().replace("&FCP\n/\n", "").replace("&RISM\n/\n", "")
    write_atomic(folder / f"{name}.in", text)


def _write_aims(crystal: "Crystal", folder: Path, name: str) -> None:
    import ase.io

    from crystal_fidelity.structures import to_atoms

    (folder / name).mkdir(exist_ok=True)
    ase.io.write(folder / name / "geometry.in", to_atoms(crystal), format="aims")


def _write_vasp_inputs(crystal: "Crystal", folder: Path, name: str) -> None:
    from pymatgen.io.vasp.sets import MPRelaxSet

    from crystal_fidelity.structures import to_pymatgen

    inputs = MPRelaxSet(to_pymatgen(crystal).get_sorted_structure())
    inputs.write_input(str(folder / name), potcar_spec=True)


_WRITERS: dict[str, Callable[["Crystal", Path, str], None]] = {
    "cif": _write_cif,
    "poscar": _write_poscar,
    "qe": _write_qe,
    "aims": _write_aims,
    "vasp-inputs": _write_vasp_inputs,
}
