"""Trained weights on disk: safetensors and a card, written whole or not at all.

A checkpoint is a folder of two files. `weights.safetensors` holds the averaged weights and the
statistics of the training cells; `card.json` the configuration and the provenance. Two more are
there if a judge was trained: `judge.safetensors` and `judge.json`. None can run code when it is
read.
"""

import errno
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from crystorus.config import ConfigError, config_from_dict, config_to_dict
from crystorus.crystal_model import CrystalModel, build_model
from crystorus.data.files import file_digest, write_whole
from crystorus.diffusion.strain_process import CellStatistics
from crystorus.networks.denoiser import FieldDenoiser
from crystorus.networks.fieldnet import FieldNet
from crystorus.networks.judge import Judge

FORMAT = 1
WEIGHTS, CARD = "weights.safetensors", "card.json"
JUDGE_WEIGHTS, JUDGE_CARD = "judge.safetensors", "judge.json"
SHIPPED = Path(__file__).parent / "weights" / "mp20"
_STATISTICS = "statistics."
_LIMIT = 2**30


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says why and what to do."""


def save_checkpoint(model: CrystalModel, folder: Path) -> None:
    """Write a checkpoint folder; an older one there is replaced file by file, atomically.

    Raises:
        OSError: If it cannot be written; an older one stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.denoiser.state_dict().items()}
    for item in fields(model.statistics):
        value = getattr(model.statistics, item.name)
        tensors[_STATISTICS + item.name] = value.detach().cpu().contiguous()
    card = {
        "config": config_to_dict(model.config),
        "trained_elements": sorted(model.trained_elements),
        "max_atoms": model.max_atoms,
        "card": model.card,
    }
    model.digest = _write_pair(folder, tensors, card, WEIGHTS, CARD)


def save_judge(judge: Judge, folder: Path, card: Mapping[str, Any]) -> None:
    """Write a judge into the folder of the checkpoint whose crystals it judges, in fp16.

    Raises:
        OSError: If it cannot be written; an older one stays.
    """
    tensors = {k: v.detach().half().cpu().contiguous() for k, v in judge.state_dict().items()}
    about = {"level": judge.level, "card": dict(card)}
    judge.digest = _write_pair(folder, tensors, about, JUDGE_WEIGHTS, JUDGE_CARD)


def _write_pair(
    folder: Path, tensors: dict[str, Tensor], about: dict[str, Any], weights: str, card: str
) -> str:
    """Write weights and the card that names their digest; returns it."""
    handle, name = tempfile.mkstemp(dir=folder, suffix=".tmp")
    os.close(handle)
    try:
        _save_tensors(tensors, name)
        digest = file_digest(Path(name))
        text = json.dumps({"format": FORMAT, "sha256": digest, **about}, indent=2)
        write_whole(folder / card, text + "\n")
        os.chmod(name, 0o644)
        os.replace(name, folder / weights)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return digest


def _save_tensors(tensors: dict[str, Tensor], name: str) -> None:
    try:
        save_file(tensors, name, metadata={"format": str(FORMAT)})
    except SafetensorError as error:  # hides the error of the system in its text
        number = errno.ENOSPC if "No space left" in str(error) else errno.EIO
        raise OSError(number, os.strerror(number), name) from error


def read_card(folder: Path) -> dict[str, Any]:
    """Read and check the card of a checkpoint without its weights.

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
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): copy the checkpoint again") from error
    if version > FORMAT:
        raise CheckpointError(
            f"{folder} is of checkpoint format {version}, this crystorus reads up to {FORMAT}: "
            "upgrade crystorus"
        )
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(sorted(missing))}: copy it again")
    return card


def read_judge_card(folder: Path) -> dict[str, Any] | None:
    """Read and check the card of a checkpoint's judge, and its weights' digest.

    Returns:
        None if the checkpoint has no judge.

    Raises:
        CheckpointError: If the judge is damaged or of a newer format.
    """
    if not (folder / JUDGE_CARD).exists():
        return None
    card = _read_card(folder, JUDGE_CARD, {"sha256", "level"})
    check_weights(folder, card, JUDGE_WEIGHTS)
    return card


def load_checkpoint(path: Path = SHIPPED, *, device: str = "cpu") -> CrystalModel:
    """Load a trained system.

    Args:
        path: Folder of the checkpoint; the one that ships by default.
        device: Where the weights go.

    Raises:
        CheckpointError: If it is missing, damaged, hostile, of a newer version, or does not
            fit the network its card describes.
    """
    card = read_card(path)
    try:
        config = config_from_dict(card["config"])
    except (AttributeError, ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path / CARD} describes a network this version does not know ({error}): use the "
            "crystorus version that wrote it"
        ) from error
    elements, max_atoms = _limits(card, path)
    check_weights(path, card)
    tensors = _read_tensors(path / WEIGHTS)
    statistics = _statistics(tensors, path)
    try:
        model = build_model(config, statistics)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path / CARD} describes a network that cannot be built ({_first(error)}): copy the "
            "checkpoint again"
        ) from error
    state = {k: v for k, v in tensors.items() if not k.startswith(_STATISTICS)}
    _load_state(model.denoiser, state, path, f"{config.preset} network")
    model.card = card.get("card", {})
    model.trained_elements, model.max_atoms = elements, max_atoms
    if isinstance(model.denoiser, FieldDenoiser):
        model.denoiser.network.largest = max_atoms
    model.digest = card["sha256"]
    model.denoiser.to(device).eval()
    judge = read_judge_card(path)
    if judge is not None:
        model.judge = _load_judge(path, judge, model).to(device).eval()
    return model


def _load_judge(path: Path, card: Mapping[str, Any], model: CrystalModel) -> Judge:
    """Load the judge of a checkpoint."""
    if not isinstance(model.denoiser, FieldDenoiser):
        raise CheckpointError(
            f"{path} holds a judge beside a network of preset {model.config.preset}, which has "
            f"none: remove {JUDGE_CARD}, or copy the checkpoint again"
        )
    level = card["level"]
    if not isinstance(level, int) or not 0 <= level <= model.diffusion.steps:
        raise CheckpointError(
            f"{path / JUDGE_CARD} names level {level!r}, limits 0 to {model.diffusion.steps}: "
            "copy the checkpoint again"
        )
    network = model.denoiser.network
    judge = Judge(FieldNet(network.config, steps=network.steps), level=level)
    judge.network.largest = network.largest
    _load_state(judge, _read_tensors(path / JUDGE_WEIGHTS), path, f"{model.config.preset} judge")
    judge.digest = str(card["sha256"])
    return judge


def check_weights(folder: Path, card: Mapping[str, Any], name: str = WEIGHTS) -> None:
    """Make sure that the weights beside a card are those it names.

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


def _limits(card: Mapping[str, Any], path: Path) -> tuple[frozenset[int], int]:
    """Return the elements and the largest cell of the training crystals."""
    try:
        return frozenset(int(z) for z in card["trained_elements"]), int(card["max_atoms"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path / CARD} is damaged ({_first(error)}): copy the checkpoint again"
        ) from error


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


def _statistics(tensors: Mapping[str, Tensor], path: Path) -> CellStatistics:
    names = [item.name for item in fields(CellStatistics)]
    missing = [n for n in names if _STATISTICS + n not in tensors]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: it is no whole checkpoint")
    return CellStatistics(*(tensors[_STATISTICS + n] for n in names))


def _load_state(module: nn.Module, state: Mapping[str, Tensor], path: Path, described: str) -> None:
    """Load weights strictly; a mismatch names the first tensor."""
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: tensor {name} is not finite: train or copy it again")
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        first = first if len(first) <= 160 else first[:159] + "…"
        raise CheckpointError(
            f"the weights in {path} do not fit the {described} of its card "
            f"({first}): the files belong to different checkpoints"
        ) from error
