"""A finished crystal as the text of its files and the line of its table."""

import io
import math
from collections.abc import Sequence
from typing import get_args

import ase.io
import torch
from jaxtyping import Bool
from torch import Tensor

from crystorus.crystal_model import ScoredBy
from crystorus.data.io import crystals_to_atoms, density, least_distance
from crystorus.data.spacegroups import dataset, group_of
from crystorus.data.writing import cif_text, dataset_cif_text
from crystorus.geometry.crystals import Crystals
from crystorus.sample.errors import GenerationError
from crystorus.sample.folder import CIF, SYMMETRISED, Finished
from crystorus.sample.guiding import Origin, origin_of
from crystorus.sample.plan import Known, Request

VALID_DISTANCE = 0.5  # Å, self-images included
VALID_VOLUME = 0.1  # Å³


def valid_crystals(crystals: Crystals) -> Bool[Tensor, " crystals"]:
    """Return which crystals are valid; one that is not finite is not."""
    return (least_distance(crystals) >= VALID_DISTANCE) & (crystals.volume >= VALID_VOLUME)


def finish_crystal(
    request: Request,
    crystal: Crystals,
    *,
    symprec: float,
    total: int,
    new_only: bool = False,
    error: float = math.nan,
    scored_by: ScoredBy = "denoising_error",
) -> Finished:
    """Describe one crystal in full.

    A crystal that is not finite keeps its line in the table, marked invalid, and has no files; a
    known phase has none if only new ones are wanted.

    Args:
        request: What it was to be.
        crystal: A batch of one.
        symprec: Symmetry tolerance in Å.
        total: Crystals of the run, for the width of the index in file names.
        new_only: Whether known phases are left out.
        error: Its `scorer_error`, where it was chosen by that.
        scored_by: What that is.

    Raises:
        GenerationError: If its composition is not the one asked for.
    """
    if crystal.atomic_numbers.tolist() != list(request.composition.atomic_numbers):
        raise GenerationError(
            f"crystal {request.index} is not of the composition asked for, "
            f"{request.composition.formula}: nothing of its batch was written"
        )
    judged = _judged(error, scored_by)
    if not _is_finite(crystal):
        return Finished(request.index, _row(request, valid=False, judged=judged), "", {})
    distance, volume = float(least_distance(crystal)[0]), float(crystal.volume[0])
    data = dataset(crystal, symprec)
    symbol, number = group_of(data)
    measured = {
        "volume": f"{volume:.4f}",
        "density": f"{float(density(crystal)[0]):.4f}",
        "space_group": symbol,
        "space_group_number": str(number),
        "symprec": f"{symprec:g}",
        "least_distance": f"{distance:.4f}",
    }
    valid = distance >= VALID_DISTANCE and volume >= VALID_VOLUME
    origin = origin_of(request, crystal)
    if new_only and origin[0] == "known":
        row = _row(request, valid=valid, judged=judged, measured=measured, origin=origin)
        return Finished(request.index, row, "", {})
    name = file_stem(request, total)
    files = {
        f"{CIF}/{name}.cif": cif_text(crystal, name),
        f"{SYMMETRISED}/{name}.cif": dataset_cif_text(crystal, data, name, symprec),
    }
    row = _row(
        request, valid=valid, judged=judged, measured=measured, files=list(files), origin=origin
    )
    return Finished(request.index, row, _frame(crystal, row), files)


def file_stem(request: Request, total: int) -> str:
    """Return the name of a crystal's files: its index, padded, and its formula."""
    width = max(5, len(str(total - 1)))
    return f"{request.index:0{width}d}-{request.composition.reduced_formula}"


def trajectory_text(request: Request, steps: Sequence[Crystals], *, total: int) -> tuple[str, str]:
    """Return name and text of the extxyz file with every step of one crystal."""
    frames = []
    for number, step in enumerate(steps, start=1):
        (atoms,) = crystals_to_atoms(step)
        atoms.info.update({"index": request.index, "step": number})
        frames.append(atoms)
    text = io.StringIO()
    ase.io.write(text, frames, format="extxyz", write_results=False)
    return f"{file_stem(request, total)}.extxyz", text.getvalue()


def _is_finite(crystal: Crystals) -> bool:
    finite = torch.isfinite(crystal.lattice).all() and torch.isfinite(crystal.frac_coords).all()
    volume = float(crystal.volume[0])
    return bool(finite) and math.isfinite(volume) and volume > 0


def _row(
    request: Request,
    *,
    valid: bool,
    judged: dict[str, str],
    measured: dict[str, str] | None = None,
    files: Sequence[str] = ("", ""),
    origin: tuple[Origin, str] = ("new", ""),
) -> dict[str, str]:
    columns = ("volume", "density", "space_group", "space_group_number", "symprec")
    blank = dict.fromkeys((*columns, "least_distance"), "")
    return {
        "index": str(request.index),
        "formula": request.composition.reduced_formula,
        "formula_units": str(request.composition.formula_units),
        "n_atoms": str(request.n_atoms),
        **(measured or blank),
        "valid": str(valid),
        **judged,
        "sample": str(request.sample),
        "seed": str(request.seed),
        **_start_columns(request.known),
        "origin": origin[0],
        "known_as": origin[1],
        "cif": files[0],
        "cif_symmetrised": files[1],
    }


def _judged(error: float, scored_by: ScoredBy) -> dict[str, str]:
    """Return the columns that say by what a crystal was chosen, empty where it was not."""
    blank: dict[str, str] = dict.fromkeys(get_args(ScoredBy), "")
    if not math.isfinite(error):
        return blank
    return blank | {scored_by: f"{math.exp(-error) if scored_by == 'confidence' else error:.4f}"}


def _start_columns(known: Known | None) -> dict[str, str]:
    if known is None:
        return {"start": "noise", "exchange": "", "level": "", "share_of_votes": ""}
    return {
        "start": known.name,
        "exchange": known.exchange,
        "level": f"{known.level:g}",
        "share_of_votes": f"{known.share:.3f}",
    }


def _frame(crystal: Crystals, row: dict[str, str]) -> str:
    (atoms,) = crystals_to_atoms(crystal)
    atoms.info = {
        "index": int(row["index"]),
        "formula": row["formula"],
        "formula_units": int(row["formula_units"]),
        "space_group": row["space_group"],
        "symprec": float(row["symprec"]),
        "valid": row["valid"] == "True",
        "seed": int(row["seed"]),
        "start": row["start"],
        "origin": row["origin"],
    }
    atoms.info |= {name: float(row[name]) for name in get_args(ScoredBy) if row[name]}
    text = io.StringIO()
    ase.io.write(text, atoms, format="extxyz", write_results=False)
    return text.getvalue()
