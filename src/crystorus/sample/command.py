"""The commands `crystorus sample` and `crystorus refine`.

Options and compositions are checked before torch is imported.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from crystal_fidelity.files import check_writable
from crystorus.runs.folder import REMEDY
from crystorus.sample.options import RefineOptions, RunOptions, SampleOptions
from crystorus.sample.requests import (
    Request,
    check_requests,
    choose_compositions,
    default_folder,
    make_requests,
    usable_structures,
)
from crystorus.terminal import counted, log, log_versions, progress, show_summary

if TYPE_CHECKING:
    from crystorus.crystal_model import CrystalModel
    from crystorus.sample.sampler import SamplingPlan

TELLING, TOLD = 5.0, 60.0
"""Seconds after which a run tells how long it will take, if that is longer than these."""


def sample(
    *formulas: str,
    options: Annotated[SampleOptions, Parameter(name="*")] = SampleOptions(),  # noqa: B008
) -> None:
    """Make crystals of given compositions.

    Writes crystals.extxyz, a CIF each (as made, and symmetrised), table.csv and run.json.

    Args:
        formulas: As in LiFeO2 "Ca(OH)2".
        options: See `SampleOptions`.

    Raises:
        RequestError: If the request makes no sense.
        OutputError: If the folder cannot take the crystals.
    """
    compositions = choose_compositions(formulas, options)
    requests = make_requests(compositions, n=options.n, seed=options.seed)
    out = options.out or default_folder(formulas, options)
    model = _load(requests, options, out)
    from crystorus.sample.sampler import plan_sampling

    with progress("templates", "structures") as on_template:
        requests, plan = plan_sampling(model, requests, options, on_template=on_template)
    _log_starts(requests, options)
    rows = _run(out, model, requests, plan, options)
    known = sum(row["origin"] == "known" for row in rows)
    if known:
        fate = "left out of the files" if options.new_only else "`--new-only` leaves them out"
        log("note", f"{counted(known, 'known phase')} among them (known_as in the table): {fate}")


def refine(
    *files: Path,
    options: Annotated[RefineOptions, Parameter(name="*")] = RefineOptions(),  # noqa: B008
) -> None:
    """Repair or perturb given structures.

    Writes what `sample` writes; `origin` in the table says whether each is still the structure it
    was.

    Args:
        files: CIF, extxyz, POSCAR, CSV or ASE database.
        options: See `RefineOptions`.

    Raises:
        RequestError: If the request makes no sense.
        OutputError: If the folder cannot take the crystals.
    """
    structures = [crystal for path in files for crystal in usable_structures(path)]
    from crystorus.sample.refine import refine_requests

    requests = refine_requests(structures, options)
    out = options.out or Path("out") / f"refined-{files[0].resolve().name.split('.')[0]}"
    model = _load(requests, options, out)
    held = sum(len(request.start.held_atoms) for request in requests if request.start)
    if held:
        log(
            "note",
            f"{counted(held, 'atom')} of {sum(request.n_atoms for request in requests)} held: a "
            "distortion among them stays, and with it the symmetry that it broke",
        )
    from crystorus.sample.sampler import plan_refining

    _run(out, model, requests, plan_refining(model, options), options)


def _load(requests: Sequence[Request], options: RunOptions, out: Path) -> "CrystalModel":
    """Load the checkpoint; refuse what it cannot hold, warn of what it never saw."""
    check_writable(out, remedy=REMEDY)
    from crystal_fidelity.workers import Workers, check
    from crystorus.checkpoint import SHIPPED, load_checkpoint
    from crystorus.sample.sampler import check_device

    check_device(options.device)
    check(Workers(options.workers, options.scheduler))
    model = load_checkpoint(options.checkpoint or SHIPPED, device=options.device)
    for warning in check_requests(requests, model, large=options.large):
        log("warning", warning)
    return model


def _log_starts(requests: Sequence[Request], options: SampleOptions) -> None:
    """Say how many crystals start at templates, and for what there are not enough."""
    if options.start_from == "noise":
        return
    lacking = [request for request in requests if request.start is None]
    log("plan", f"starts: {len(requests) - len(lacking)} at templates, {len(lacking)} at noise")
    if options.start_from == "templates" and lacking:
        names = list(dict.fromkeys(request.composition.formula for request in lacking))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        log(
            "note",
            f"no further template fits {', '.join(names[:3])}{more}: the rest starts at noise",
        )


def _run(
    path: Path,
    model: "CrystalModel",
    requests: Sequence[Request],
    plan: "SamplingPlan",
    options: RunOptions,
) -> list[dict[str, str]]:
    """Make what is missing of a run in its folder, with a bar; returns the rows of its table."""
    import time

    from crystal_fidelity.cells import HARDLY_PHYSICAL
    from crystal_fidelity.provenance import versions
    from crystal_fidelity.workers import Workers
    from crystorus.checkpoint import SHIPPED
    from crystorus.sample.output import PROGRAMS, OutputFolder, run_settings
    from crystorus.sample.sampler import make

    total, compositions = len(requests), {request.composition for request in requests}
    of = counted(len(compositions), "composition")
    log("plan", f"{counted(total, 'crystal')} of {of} into {path}")
    settings = run_settings(requests, plan, model, options)
    new_only = isinstance(options, SampleOptions) and options.new_only
    began = time.monotonic()
    with OutputFolder(path, settings, total=total, overwrite=options.overwrite) as folder:
        kept = len(folder.done)
        if folder.run.complete:
            log("note", f"{path} already holds all of this run: {counted(total, 'crystal')}")
        elif kept:
            log("note", f"going on in {path}, where {counted(kept, 'crystal')} of {total} stood")
        log_versions("run", folder.run.changed_versions(versions(PROGRAMS)))
        if not folder.run.complete:
            missing = [request for request in requests if request.index not in folder.done]
            atoms, total_atoms, told = 0, sum(request.n_atoms for request in missing), False
            with progress("sampling", "crystals", done=kept, total=total) as update:
                parts = make(
                    model,
                    missing,
                    plan,
                    workers=Workers(options.workers, options.scheduler),
                    checkpoint=options.checkpoint or SHIPPED,
                )
                for part in parts:
                    folder.commit(part, symprec=options.symprec, new_only=new_only)
                    update(len(folder.done))
                    atoms += sum(request.n_atoms for request in part.requests)
                    passed = time.monotonic() - began
                    left = passed * (total_atoms - atoms) / atoms
                    if not told and passed > TELLING and left > TOLD:
                        log("note", f"about {counted(round(left / 60), 'minute')} to go")
                        told = True
            folder.finish()
        rows = folder.rows()
    show_summary(rows, made=len(folder.done) - kept, seconds=time.monotonic() - began)
    ratios = [float(row["min_distance_ratio"] or "nan") for row in rows]
    close = sum(ratio < HARDLY_PHYSICAL for ratio in ratios)
    if close:
        log(
            "warning",
            f"{counted(close, 'crystal')} with atoms nearer than {HARDLY_PHYSICAL:g} of the sum of "
            "their covalent radii (min_distance_ratio in the table), hardly physical: sample again "
            "with another seed, or relax",
        )
    return rows
