"""Trained weights on disk: safetensors and a card, written whole or not at all.

A checkpoint is a folder of two files. `weights.safetensors` holds the averaged weights and the
statistics of the training cells; `card.json` the configuration and the provenance. With
`skeletons.safetensors` it samples inside space groups. Two more are there if a scorer was trained:
`scorer.safetensors` and `scorer.json`, formerly `judge.*`. None can run code when it is read.
"""

import errno
import functools
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from crystal_fidelity.files import atomic_path, file_digest, write_atomic
from crystal_fidelity.structures import MAX_ATOMIC_NUMBER
from crystorus.config import config_from_dict, config_to_dict
from crystorus.crystal_model import CrystalModel, build_model
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.diffusion.space_groups import Skeletons
from crystorus.errors import CheckpointError
from crystorus.geometry.space_groups import N_GROUPS, sites
from crystorus.networks.fieldnet import FieldDenoiser, FieldNet
from crystorus.networks.scorer import Scorer

FORMAT = 1
"""Version of the layout; a reader refuses higher ones."""

WEIGHTS, CARD = "weights.safetensors", "card.json"
SKELETONS = "skeletons.safetensors"
SCORER_WEIGHTS, SCORER_CARD = "scorer.safetensors", "scorer.json"
FORMER_SCORER_WEIGHTS, FORMER_SCORER_CARD = "judge.safetensors", "judge.json"
SHIPPED = Path(__file__).parent / "weights" / "mp20"
_STATISTICS = "statistics."
_LIMIT = 2**30


def save_checkpoint(model: CrystalModel, folder: Path) -> None:
    """Write a checkpoint folder; an older one there is replaced file by file, atomically.

    Args:
        model: What is saved; its digest becomes that of the weights file.
        folder: Made if it is not there.

    Raises:
        OSError: If it cannot be written; an older one stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(model.denoiser.state_dict())
    for item in fields(model.statistics):
        tensors[_STATISTICS + item.name] = getattr(model.statistics, item.name)
    card = {
        "config": config_to_dict(model.config),
        "trained_elements": sorted(model.trained_elements),
        "max_atoms": model.max_atoms,
        "card": model.card,
    }
    if model.skeletons:
        save_skeletons(model.skeletons, folder)
    else:
        (folder / SKELETONS).unlink(missing_ok=True)
    model.digest = _write_pair(folder, tensors, card, WEIGHTS, CARD)


def save_skeletons(skeletons: Skeletons, folder: Path) -> None:
    """Write the skeletons of the training crystals into the folder of a checkpoint.

    Args:
        skeletons: One per training crystal.
        folder: A checkpoint.

    Raises:
        OSError: If they cannot be written.
    """
    tensors = {item.name: getattr(skeletons, item.name) for item in fields(skeletons)}
    with atomic_path(folder / SKELETONS) as aside:
        _save_tensors(
            {name: torch.from_numpy(row.astype(np.uint8)) for name, row in tensors.items()},
            aside,
            folder / SKELETONS,
        )
        aside.chmod(0o644)


def read_skeletons(folder: Path) -> Skeletons:
    """Read the skeletons of the training crystals; none if the checkpoint has no such file.

    Args:
        folder: Of the checkpoint.

    Raises:
        CheckpointError: If the file is damaged.
    """
    path = folder / SKELETONS
    if not path.exists():
        return Skeletons.of(())
    tensors = _read_tensors(path)
    try:
        columns = [tensors[item.name].long().numpy() for item in fields(Skeletons)]
        found = Skeletons(*columns)
        groups, sizes, elements, places = columns
        if len(groups) != len(sizes) or not len(elements) == len(places) == sizes.sum():
            raise ValueError(f"{len(elements)} elements on {len(places)} sites of {sizes.sum()}")
        if (elements < 1).any() or (elements > MAX_ATOMIC_NUMBER).any() or (places < 0).any():
            raise ValueError("an orbit is of no element")
        n_sites = np.array([0] + [len(sites(group)) for group in range(1, N_GROUPS + 1)])
        known = (groups >= 1) & (groups <= N_GROUPS)
        if not known.all() or (places >= n_sites[groups].repeat(sizes)).any():
            raise ValueError("a space group has no such sites")
        return found
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): copy the checkpoint again") from error


def save_scorer(scorer: Scorer, folder: Path, card: Mapping[str, Any]) -> None:
    """Write a scorer, in fp16, into the folder of the checkpoint whose crystals it scores.

    Args:
        scorer: What is saved; its digest becomes that of the weights file.
        folder: A checkpoint.
        card: Provenance: data, settings, figures.

    Raises:
        OSError: If it cannot be written; an older one stays.
    """
    tensors = {name: value.half() for name, value in scorer.state_dict().items()}
    about = {"level": scorer.level, "card": dict(card)}
    scorer.digest = _write_pair(folder, tensors, about, SCORER_WEIGHTS, SCORER_CARD)
    for former in (FORMER_SCORER_WEIGHTS, FORMER_SCORER_CARD):
        (folder / former).unlink(missing_ok=True)


def _write_pair(
    folder: Path, tensors: Mapping[str, Tensor], about: dict[str, Any], weights: str, card: str
) -> str:
    """Write weights and the card that names their digest; returns it."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_path(folder / weights) as aside:
        _save_tensors(plain, aside, folder / weights)
        aside.chmod(0o644)
        digest = file_digest(aside)
        text = json.dumps({"format": FORMAT, "sha256": digest, **about}, indent=2)
        write_atomic(folder / card, text + "\n")
    return digest


def _save_tensors(tensors: dict[str, Tensor], aside: Path, path: Path) -> None:
    """Write tensors aside; an error names the file that they are for."""
    try:
        save_file(tensors, aside, metadata={"format": str(FORMAT)})
    except SafetensorError as error:  # hides the error of the system in its text
        number = errno.ENOSPC if "No space left" in str(error) else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def read_card(folder: Path) -> dict[str, Any]:
    """Read and check the card of a checkpoint without its weights.

    Args:
        folder: The checkpoint.

    Returns:
        The card: format, sha256, config, trained_elements, max_atoms and card.

    Raises:
        CheckpointError: If the folder is no checkpoint or is of a newer format.
    """
    return _read_card(folder, CARD, {"config", "sha256", "trained_elements", "max_atoms"})


def _read_card(folder: Path, name: str, needed: set[str]) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no {name}: give the folder of a checkpoint, such as a run's best/"
        )
    try:
        card = json.loads(path.read_text())
        version = int(card["format"])
        missing = needed - set(card)
    except (ValueError, KeyError, TypeError, OSError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged ({_first(error)}): copy the checkpoint again"
        ) from error
    if version > FORMAT:
        raise CheckpointError(
            f"{folder} is of checkpoint format {version}, this crystorus reads up to {FORMAT}: "
            "upgrade crystorus"
        )
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(sorted(missing))}: copy it again")
    return card


def _scorer_files(folder: Path) -> tuple[str, str]:
    """Return the names of the scorer's weights and card."""
    former = not (folder / SCORER_CARD).exists() and (folder / FORMER_SCORER_CARD).exists()
    return (FORMER_SCORER_WEIGHTS, FORMER_SCORER_CARD) if former else (SCORER_WEIGHTS, SCORER_CARD)


def read_scorer_card(folder: Path) -> dict[str, Any] | None:
    """Read and check the card of a checkpoint's scorer, and its weights' digest.

    Args:
        folder: The checkpoint.

    Returns:
        The card: format, sha256, level and card; None if the checkpoint has no scorer.

    Raises:
        CheckpointError: If the scorer is damaged or of a newer format.
    """
    weights, name = _scorer_files(folder)
    if not (folder / name).exists():
        return None
    card = _read_card(folder, name, {"sha256", "level"})
    check_weights(folder, card, weights)
    return card


def load_checkpoint(path: Path = SHIPPED, *, device: str = "cpu") -> CrystalModel:
    """Load a trained model.

    Args:
        path: Folder of the checkpoint; the one that ships by default.
        device: Where the weights go.

    Returns:
        The model in evaluation mode, with its scorer if the folder holds one.

    Raises:
        CheckpointError: If it is missing, damaged, hostile, of a newer version, or does not
            fit the network its card describes.
    """
    card = read_card(path)
    try:
        config = config_from_dict(card["config"])
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path / CARD} describes a network this version does not know ({error}): use the "
            "crystorus version that wrote it"
        ) from error
    try:
        elements = frozenset(int(z) for z in card["trained_elements"])
        max_atoms = int(card["max_atoms"])
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{path / CARD} is damaged ({_first(error)}): copy the checkpoint again"
        ) from error
    check_weights(path, card)
    tensors = _read_tensors(path / WEIGHTS)
    names = [item.name for item in fields(CellStatistics)]
    missing = [n for n in names if _STATISTICS + n not in tensors]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: it is no whole checkpoint")
    statistics = CellStatistics(*(tensors.pop(_STATISTICS + n) for n in names))
    try:
        model = build_model(config, statistics, max_atoms=max_atoms)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path / CARD} describes a network that cannot be built ({_first(error)}): copy the "
            "checkpoint again"
        ) from error
    _load_state(model.denoiser, tensors, path, f"{config.preset} network")
    model.card, model.trained_elements = card.get("card", {}), elements
    model.digest, model.skeletons = card["sha256"], read_skeletons(path)
    model.denoiser.to(device).eval()
    scorer = read_scorer_card(path)
    if scorer is not None:
        model.scorer = _load_scorer(path, scorer, model).to(device).eval()
    return model


@functools.lru_cache(maxsize=1)
def loaded_checkpoint(path: Path = SHIPPED, device: str = "cpu") -> CrystalModel:
    """Load a trained model once per process, as `load_checkpoint`: workers ask for every job.

    Args:
        path: Folder of the checkpoint.
        device: Where the weights go.
    """
    return load_checkpoint(path, device=device)


def _load_scorer(path: Path, card: Mapping[str, Any], model: CrystalModel) -> Scorer:
    """Load the scorer of a checkpoint."""
    weights, name = _scorer_files(path)
    if not isinstance(model.denoiser, FieldDenoiser):
        raise CheckpointError(
            f"{path} holds a scorer beside a network of preset {model.config.preset}, which has "
            f"none: remove {name}, or copy the checkpoint again"
        )
    level = card["level"]
    if not isinstance(level, int) or not 0 <= level <= model.diffusion.steps:
        raise CheckpointError(
            f"{path / name} names level {level!r}, limits 0 to {model.diffusion.steps}: "
            "copy the checkpoint again"
        )
    like = model.denoiser.network
    network = FieldNet(like.config, steps=like.steps, max_atoms=like.max_atoms)
    scorer = Scorer(network, level=level, digest=str(card["sha256"]))
    # Scorers of version 0.1 knew no skeletons.
    tensors = {"prior": scorer.prior.detach()} | _read_tensors(path / weights)
    _load_state(scorer, tensors, path, f"{model.config.preset} scorer")
    return scorer


def check_weights(folder: Path, card: Mapping[str, Any], name: str = WEIGHTS) -> None:
    """Make sure that the weights beside a card are those it names.

    Args:
        folder: The checkpoint.
        card: What names their SHA-256.
        name: The file of weights.

    Raises:
        CheckpointError: If they are missing, cut short or were replaced.
    """
    path, digest = folder / name, str(card["sha256"])
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: copy the checkpoint folder again, both files")
    size = path.stat().st_size
    if size > _LIMIT:
        raise CheckpointError(f"{path} has {size} bytes, limit {_LIMIT}: this is no checkpoint")
    found = file_digest(path)
    if found != digest:
        raise CheckpointError(
            f"{path} has SHA-256 {found[:12]}…, its card says {digest[:12]}…: the file is "
            "truncated or was replaced; copy the checkpoint again"
        )


def _first(error: Exception) -> str:
    """Return the first line of an error, cut to what a sentence can hold."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 160 else lines[0][:159] + "…"


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file ({error}): pickles are never read; "
            "copy the checkpoint again"
        ) from error


def _load_state(module: nn.Module, state: Mapping[str, Tensor], path: Path, described: str) -> None:
    """Load weights strictly; a mismatch names the last tensor that does not fit."""
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: tensor {name} is not finite: train or copy it again")
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        last = ValueError(str(error).strip().splitlines()[-1])
        raise CheckpointError(
            f"the weights in {path} do not fit the {described} of its card "
            f"({_first(last)}): the files belong to different checkpoints"
        ) from error
