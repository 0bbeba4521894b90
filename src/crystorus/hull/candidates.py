"""Structures into a campaign: sampled or read, then screened, near-duplicates marked."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from crystal_fidelity.cells import niggli_reduce
from crystal_fidelity.files import file_digest
from crystal_fidelity.options import SYMPREC
from crystal_fidelity.reading import iter_structures
from crystal_fidelity.structures import Entry, ReadFailure, to_atoms
from crystorus.data.compositions import Composition, FormulaError, parse_formula
from crystorus.data.writers import safe_name
from crystorus.errors import ReadingError
from crystorus.hull.options import SamplingOptions
from crystorus.terminal import log

if TYPE_CHECKING:
    from crystorus.crystal_model import CrystalModel
    from crystorus.hull.campaign import Campaign
    from crystorus.sample.requests import Request
    from crystorus.sample.sampler import SamplingPlan

GENERATED, REFERENCE = "generated", "reference"
REQUESTED, UNSCREENED = "requested", "unscreened"
VALID, INVALID, DUPLICATE = "valid", "invalid", "duplicate"
"""Status of an original row: "requested" until it is sampled, "unscreened" until the screen before
the potential (`relax.screen`, stricter than `crystal_fidelity.validity`) has called it "valid" or
"invalid"; "duplicate" if it is near one before it (`matching.NEAR`)."""
WAITING = "waiting"
"""Status of a relaxed row until its relaxation ends; then it is one of `relax.Status`."""
GENERATED_FILES = "generated"
MOST_SUGGESTED, ENOUGH_WEIGHT = 3, 0.9
"""Of `suggest_units`."""
_PER_COMMIT = 50


@dataclass(frozen=True, eq=False)
class InputStructure:
    """A structure as it came.

    Attributes:
        name: Unique in the campaign.
        kind: "generated" or "reference".
        atoms: The structure; symbols alone where there is none.
        status: "unscreened", "invalid", or "requested" as long as it is not made.
        source: Where it came from.
        reason: Why it is not valid.
        pairs: More key-value pairs of its rows: where its sampling run began.
        details: What else is known of it, in JSON's types.
    """

    name: str
    kind: str
    atoms: Atoms
    status: str
    source: str
    reason: str = ""
    pairs: dict[str, str | float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def niggli_atoms(entry: Entry) -> Atoms:
    """Return a crystal in its Niggli cell: graphs of skewed cells need many images.

    Args:
        entry: As it was read.

    Raises:
        ReadingError: If it could not be read.
    """
    if isinstance(entry, ReadFailure):
        raise ReadingError(entry.reason)
    return to_atoms(niggli_reduce(entry))


def structures_of(
    path: Path, kind: str, source: str, *, within: Collection[str] = ()
) -> Iterator[InputStructure]:
    """Yield the structures of a file or folder, their cells reduced; unreadable ones are invalid.

    Args:
        path: The file or folder.
        kind: "generated" or "reference".
        source: What to call it.
        within: Symbols; structures with other elements are left out, rows of a table without being
            parsed where their formula and their elements say so.

    Raises:
        ReadingError: If the path as a whole cannot be read.
    """

    def may_be_within(columns: Mapping[str, str]) -> bool:
        try:
            found = set(parse_formula(columns["pretty_formula"]).elements)
        except (KeyError, FormulaError):
            return True
        # "B2" and "C15" are names of phases too: `elements` of the Materials Project tells.
        listed = re.findall("[A-Z][a-z]?", columns.get("elements", ""))
        return found <= set(within) or found != set(listed)

    taken: dict[str, int] = {}
    for entry in iter_structures(path, keep=may_be_within if within else None):
        name = safe_name(entry.name)
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            name = f"{name}-again{taken[name] - 1}"
        details = {"id": entry.name}
        try:
            atoms = niggli_atoms(entry)
        except ReadingError as error:
            yield InputStructure(name, kind, Atoms(), INVALID, source, str(error), details=details)
        else:
            if not within or set(atoms.symbols) <= set(within):
                yield InputStructure(name, kind, atoms, UNSCREENED, source, details=details)


def sample_name(request: "Request") -> str:
    """Return the name of a request's rows and files: its number and its reduced formula.

    Args:
        request: Of one crystal.
    """
    return f"{request.index:05d}-{request.composition.reduced_formula}"


@dataclass(frozen=True, eq=False)
class Samples:
    """What a campaign samples.

    Attributes:
        model: A loaded checkpoint.
        requests: The crystals.
        plan: How they are made.
        settings: What decides them, for a folder to recognise its campaign.
        warnings: What a user should hear of them.
    """

    model: "CrystalModel"
    requests: "tuple[Request, ...]"
    plan: "SamplingPlan"
    settings: dict[str, Any]
    warnings: tuple[str, ...] = ()


def plan_samples(
    options: SamplingOptions,
    compositions: Sequence[Composition] | Callable[["CrystalModel"], Sequence[Composition]],
    *,
    large: bool = False,
    remedy: str = "",
) -> Samples:
    """Load the model and settle which crystals it makes.

    Args:
        options: How many, and how.
        compositions: In the order in which the budget is spent; or what chooses them for a model.
        large: Only warn of cells with more atoms than the model was trained on.
        remedy: What to do about such cells.

    Raises:
        RequestError: If the request does not fit the model.
        ReadingError: If the library cannot be opened.
    """
    from crystorus.checkpoint import SHIPPED, load_checkpoint
    from crystorus.sample.output import run_settings
    from crystorus.sample.requests import check_requests, make_requests
    from crystorus.sample.sampler import check_device, plan_sampling

    check_device(options.device)
    model = load_checkpoint(options.checkpoint or SHIPPED, device=options.device)
    listed = compositions(model) if callable(compositions) else compositions
    reached = listed[: -(-options.budget // options.n)]
    requests = make_requests(reached, n=options.n, seed=options.seed)[: options.budget]
    warnings = check_requests(
        requests,
        model,
        large=large,
        remedy=remedy
        or f"lower --max-atoms to {model.max_atoms} (and --z), or take the formulas that need more "
        "to `crystorus predict --large`",
    )
    asked = options.as_sample_options()
    requests, plan = plan_sampling(model, requests, asked)
    # What a user would first look at comes first: it is named where two campaigns differ.
    settings: dict[str, Any] = {"start": asked.start_from}
    if asked.needs_library:
        named = options.library and f"{options.library.name} {file_digest(options.library)[:12]}"
        settings["library"] = named or "AFLOW prototypes"
    settings |= run_settings(requests, plan, model, asked)
    del settings["options"]
    return Samples(model, requests, plan, settings, tuple(warnings))


def suggest_units(unit: Composition, model: "CrystalModel") -> list[Composition]:
    """Return cells of a formula with as many units as known crystals have; say so.

    Args:
        unit: As the formula is written.
        model: A checkpoint, with the skeletons of its training crystals.

    Returns:
        The likeliest numbers of units, which together have nine tenths of the weights, at most
        three; one unit where nothing is known of the ratio of element counts.
    """
    from crystorus.templates.skeletons import table_of

    one, chosen, covered = unit.reduced, list[int](), 0.0
    found = table_of(model.skeletons).units(one, model.max_atoms) if model.skeletons else []
    for z, fraction in found[:MOST_SUGGESTED]:
        if covered < ENOUGH_WEIGHT:
            chosen.append(z)
            covered += fraction
    listed = ", ".join(f"{z} ({fraction:.0%})" for z, fraction in found[:MOST_SUGGESTED])
    known = f"known crystals of this ratio have {listed}" if found else "no known crystal tells"
    units = sorted(chosen or [1])
    either = " or ".join(map(str, units))
    log("plan", f"{one.formula} with {either} formula units ({known}; --z for others)")
    return [one * z for z in units]


def sample(
    campaign: "Campaign", samples: Samples, on_progress: Callable[[float, float], None]
) -> None:
    """Sample what the campaign does not hold yet; every batch is kept as it is finished.

    All rows are set aside first, so that their numbers do not depend on the batches. The crystals
    are also written into the folder `generated`, as `crystorus sample` does.

    The database says what is left to make. After a kill between the two writes of a batch
    `generated` has crystals that the database lacks: they are made again, the same ones, and take
    the place of those. Where the database has none, `generated` is begun anew.

    Args:
        campaign: Where the crystals go.
        samples: What is made.
        on_progress: Called with the number of crystals made, those in flight by their steps, and
            of all.
    """
    from crystorus.sample.output import OutputFolder
    from crystorus.sample.sampler import make

    requests, total = samples.requests, len(samples.requests)
    campaign.add([_sampled(one, REQUESTED) for one in requests])
    rows = {row.name: row.id for row in campaign.originals(GENERATED) if row.status == REQUESTED}
    left = [request for request in requests if sample_name(request) in rows]
    done = total - len(left)
    if not left:
        return

    def on_step(step: int, steps: int) -> None:
        on_progress(done + step / (steps + 1), total)

    settings = samples.settings | {"options": {}}
    folder = campaign.path / GENERATED_FILES
    with OutputFolder(folder, settings, total=total, overwrite=len(left) == total) as output:
        for made in make(samples.model, left, samples.plan, on_step=on_step):
            output.commit(made, symprec=SYMPREC)
            origins = {one.index: output.done[one.index].row["origin"] for one in made.requests}
            campaign.fill(
                {
                    rows[sample_name(one)]: _sampled(one, UNSCREENED, atoms, origins[one.index])
                    for one, atoms in zip(made.requests, made.to_ase(), strict=True)
                }
            )
            done += len(made)
            on_progress(done, total)
        output.finish()


def _sampled(
    request: "Request", status: str, atoms: Atoms | None = None, origin: str = ""
) -> InputStructure:
    composition, start, reason = request.composition, request.start, ""
    if atoms is not None and not (np.isfinite(atoms.positions).all() and atoms.get_volume() > 0):
        atoms, status = None, INVALID
        reason = "the model gave numbers that are not finite"
    atoms = Atoms(composition.formula) if atoms is None else atoms
    pairs: dict[str, str | float] = {"start": safe_name(start.name) if start else "noise"}
    if start is not None and start.prototype_fraction is not None:
        pairs["prototype_fraction"] = float(start.prototype_fraction)
    details = {
        "index": request.index, "sample": request.sample, "seed": str(request.seed),
        "formula_units": composition.formula_units,
    }  # fmt: skip
    return InputStructure(
        sample_name(request), GENERATED, atoms, status, "sampled", reason,
        pairs=pairs | ({"origin": origin} if origin else {}), details=details,
    )  # fmt: skip


def screen_structures(
    campaign: "Campaign",
    kind: str,
    *,
    drop_duplicates: bool,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Screen what was not screened yet, a batch per commit.

    Args:
        campaign: Whose structures.
        kind: "generated" or "reference".
        drop_duplicates: Mark near-duplicates, so that only the first of each is relaxed.
        on_progress: Called with the number of structures seen, and of all.
    """
    from crystorus.hull.matching import NEAR, Comparable, StructureIndex
    from crystorus.hull.relax import screen

    limits = campaign.relaxation.screen
    index = StructureIndex(NEAR)
    rows = campaign.originals(kind)
    found: dict[int, dict[str, str | float]] = {}
    for done, row in enumerate(rows, start=1):
        atoms, reason = row.toatoms(), ""
        if row.status == UNSCREENED:
            reason = screen(atoms, limits)
            found[row.id] = {"status": INVALID, "reason": reason} if reason else {"status": VALID}
        if drop_duplicates and row.status in (UNSCREENED, VALID) and not reason:
            shape = Comparable.of(atoms)
            first = index.find(shape) if row.status == UNSCREENED else ""
            if first:
                found[row.id] = {"status": DUPLICATE, "duplicate_of": first}
            else:
                index.add(row.name, shape)
        if len(found) == _PER_COMMIT or (found and done == len(rows)):
            campaign.note(found)
            found = {}
            on_progress(done, len(rows))
