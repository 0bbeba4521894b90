"""The crystals of an experiment: to train on, to choose checkpoints on, and held out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crystorus.data.files import file_digest, write_whole
from crystorus.data.io import crystals_from_structures
from crystorus.data.store import STORE, CrystalStore, build_store, digest_of, is_kind, open_store
from crystorus.data.writing import write_extxyz
from crystorus.geometry import Crystals
from crystorus.reproduction.errors import PaperError
from crystorus.reproduction.settings import Budget

MAX_ATOMS = 20
CHOICE_SEED = 4
"""Seed of the choice of held-out compositions; the project's other figures used 0 to 3."""
CLAIM = "experiment.json"
_EVERY = 4


@dataclass(frozen=True)
class Sources:
    """Files of crystals as a user named them; None where they said nothing."""

    train: Path | None = None
    validation: Path | None = None
    held_out: Path | None = None


@dataclass(frozen=True)
class Inputs:
    """Crystals ready for use.

    Attributes:
        train: Store to train on.
        validation: Store on which checkpoints are chosen.
        held_out_store: Store the held-out crystals are chosen from.
        held_out: The crystals whose compositions are sampled, an extxyz file.
        others: As many training crystals, an extxyz file: what real data score.
        about: Names, digests and numbers of the crystals, for every result.
    """

    train: Path
    validation: Path
    held_out_store: Path
    held_out: Path
    others: Path
    about: dict[str, Any]


def prepare(out: Path, budget: Budget, sources: Sources) -> Inputs:
    """Make a folder the home of one experiment and return its crystals.

    Raises:
        PaperError: If crystals are missing, or the folder holds an experiment on others.
        ReadingError: If they cannot be read.
    """
    _check(budget, sources)
    folder = out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    if sources.train is None or sources.validation is None:
        sources = _prototypes(folder)
    assert sources.train is not None
    assert sources.validation is not None
    held_out = sources.held_out or sources.validation
    stores = {
        name: _store(path, folder / f"{name}.store")
        for name, path in (
            ("train", sources.train),
            ("validation", sources.validation),
            ("held_out", held_out),
        )
    }
    about: dict[str, Any] = {name: _about(store) for name, store in stores.items()}
    chosen = choose(stores["held_out"], budget.compositions)
    about["compositions"] = len(chosen)
    _claim(out, {"budget": budget.name, "inputs": about})
    files = {}
    for name, store, rows in (
        ("held-out", stores["held_out"], chosen),
        ("train-part", stores["train"], choose(stores["train"], len(chosen))),
    ):
        files[name] = folder / f"{name}.extxyz"
        if not files[name].exists():
            _write(files[name], store, rows)
    about["held_out_file"] = file_digest(files["held-out"])
    return Inputs(
        stores["train"].path,
        stores["validation"].path,
        stores["held_out"].path,
        files["held-out"],
        files["train-part"],
        about,
    )


def _check(budget: Budget, sources: Sources) -> None:
    if (sources.train is None) != (sources.validation is None):
        raise PaperError("--data and --validation go together: give both")
    if sources.train is None and sources.held_out is not None:
        raise PaperError("--held-out needs --data and --validation: give all three")
    if sources.train is None and budget.name != "smoke":
        raise PaperError(
            f"--budget {budget.name} needs --data TRAIN and --validation VALIDATION: fetch MP-20 "
            "with `crystorus data get mp-20`, or take --budget smoke"
        )
    named = (sources.train, sources.validation, sources.held_out)
    missing = [path for path in named if path is not None and not path.exists()]
    if missing:
        raise PaperError(
            f"{missing[0]} does not exist: fetch MP-20 with `crystorus data get mp-20`, or give "
            "another file of crystals"
        )


def _claim(out: Path, experiment: dict[str, Any]) -> None:
    """Refuse to mix budgets or crystals in one folder."""
    path, ours = out / CLAIM, json.loads(json.dumps(experiment))
    if not path.exists():
        write_whole(path, json.dumps(experiment, indent=2) + "\n")
        return
    try:
        theirs = json.loads(path.read_text("utf-8"))
        same = theirs == ours
        budget = theirs["budget"]
    except (ValueError, KeyError, TypeError) as error:
        raise PaperError(f"{path} is damaged ({error}): choose another --out") from error
    if not same:
        what = f"budget {budget}" if budget != ours["budget"] else "other crystals"
        raise PaperError(f"{out} holds an experiment with {what}: choose another --out")


def _prototypes(folder: Path) -> Sources:
    """Write the AFLOW prototypes that pymatgen carries, every fourth for validation."""
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    found = Sources(folder / "prototypes-train.extxyz", folder / "prototypes-validation.extxyz")
    structures = [entry["snl"].structure for entry in AFLOW_PROTOTYPE_LIBRARY]
    small = [s for s in structures if s.is_ordered and len(s) <= MAX_ATOMS]
    parts = (
        (found.train, [s for i, s in enumerate(small) if i % _EVERY]),
        (found.validation, small[::_EVERY]),
    )
    for path, part in parts:
        assert path is not None
        if not path.exists():
            write_extxyz(path, crystals_from_structures(part, dtype=torch.float64))
    return found


def _store(source: Path, cache: Path) -> CrystalStore:
    if is_kind(source, STORE):
        return open_store(source)
    if cache.exists():
        store = open_store(cache)
        if [s["sha256"] for s in store.header["sources"]] == [digest_of(source)]:
            return store
        raise PaperError(
            f"{cache} was made from another {source.name}: put it back, or choose another --out"
        )
    return build_store(source, cache)


def _about(store: CrystalStore) -> dict[str, Any]:
    sources = [source["name"] for source in store.header["sources"]]
    return {"sources": sources, "sha256": store.header["sha256"], "crystals": len(store)}


def choose(store: CrystalStore, count: int) -> np.ndarray:
    """Return which crystals are taken, in the store's order."""
    small = np.flatnonzero(store.n_atoms <= MAX_ATOMS)
    if not count or count >= len(small):
        return small
    return np.sort(np.random.default_rng(CHOICE_SEED).permutation(small)[:count])


def _write(path: Path, store: CrystalStore, rows: Sequence[int] | np.ndarray) -> None:
    crystals: Crystals = store.select(rows, dtype=torch.float64)
    ids = store.ids
    aside = path.with_suffix(".partial")
    write_extxyz(aside, crystals, [{"id": ids[int(row)]} for row in rows])
    aside.replace(path)
