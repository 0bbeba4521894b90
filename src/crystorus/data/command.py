"""`crystorus data get`, `crystorus data build` and `crystorus order`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from crystorus.data.options import OrderOptions
from crystorus.runs.folder import REMEDY


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
    from crystal_fidelity.files import check_writable
    from crystorus.data.store import build_store
    from crystorus.terminal import counted, echo, log_skipped, progress

    check_writable(store.parent)
    with progress("reading", "structures") as update:
        built = build_store(source, store, n_workers=workers, progress=update)
    echo(f"{counted(len(built), 'structure')} in {store}, {built.header['n_skipped']} left out")
    log_skipped(built.skipped)


def order(
    source: Path,
    /,
    *,
    options: Annotated[OrderOptions, Parameter(name="*")] = OrderOptions(),  # noqa: B008 - frozen
) -> None:
    """Write ordered supercells of a crystal whose sites are partly occupied.

    The lowest electrostatic energy of point charges comes first: a way to choose, no energy.
    `crystorus relax` takes the folder.

    Args:
        source: A CIF.
        options: How many, and how large.

    Raises:
        ReadingError: If it is no CIF that can be read.
        RequestError: If no list of supercells within the limits is complete.
        FileError: If a file cannot be written.
    """
    from crystal_fidelity.files import check_writable, disk_errors, write_atomic
    from crystal_fidelity.symmetry import space_group
    from crystorus.data.compositions import Composition
    from crystorus.data.convert import join
    from crystorus.data.ordering import order_sites, read_disordered
    from crystorus.data.writers import cif_text, csv_text, safe_name
    from crystorus.terminal import counted, echo, log

    stem = safe_name(source.name.split(".")[0])
    out = options.out or Path("out") / f"ordered-{stem}"
    check_writable(out, remedy=REMEDY)
    found = order_sites(
        read_disordered(source),
        n=options.n,
        max_atoms=options.max_atoms,
        tolerance=options.tolerance,
        charges=options.charge_of(),
    )
    rows, files = list[dict[str, str]](), dict[str, str]()
    for place, one in enumerate(found, start=1):
        name, energy = f"{stem}-{place:02d}", one.energy_per_atom
        files[f"{name}.cif"] = cif_text(join([one.crystal]), name)
        rows.append(
            {
                "name": name,
                "formula": Composition.of(one.crystal.atomic_numbers.tolist()).reduced_formula,
                "n_atoms": str(len(one.crystal)),
                "electrostatic_energy": "" if energy is None else f"{energy + 0.0:.4f}",
                "ways": str(one.ways),
                "space_group": space_group(one.crystal).symbol,
                "file": f"{name}.cif",
            }
        )
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            write_atomic(out / file, text)
        write_atomic(out / "table.csv", csv_text(list(rows[0]), rows))
    for line in (list(rows[0]), *(list(row.values()) for row in rows)):
        echo("\t".join(line))
    energies = [row["electrostatic_energy"] for row in rows]
    alike = sum(energies.count(energy) > 1 for energy in energies)
    if found[0].energy_per_atom is None:
        log("note", "no charges balance it: the supercells are in no order of energy")
    elif alike:
        log("note", f"{alike} of them have the energy of another: their order says nothing")
    log("done", f"{counted(len(found), 'supercell')} in {out}")
