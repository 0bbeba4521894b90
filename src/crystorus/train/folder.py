"""The folder of a run: whose it is, its data, and the state it goes on from.

run.json        configuration and data of the run
data/           stores built from sources that are not stores
best/, last/    checkpoints, see `crystorus.checkpoint`
state/          what a resumed run needs: weights, optimizer, averages, progress
metrics.csv     losses; tensorboard/ the same
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from crystorus.config import Config, ConfigError, config_from_dict, config_to_dict
from crystorus.data.files import write_whole
from crystorus.data.store import CrystalStore, open_or_build
from crystorus.train.errors import TrainingError

RUN, STATE, BEST, LAST = "run.json", "state/last.ckpt", "best", "last"
_MAY_CHANGE = {"training.workers", "training.save_minutes", "training.accelerator"}
_PATIENCE_SECONDS = 1800.0


def claim(folder: Path, config: Config, *, resume: bool) -> None:
    """Make a folder the home of a run, or find the run there to be this one.

    Raises:
        TrainingError: If it holds something else, or there is nothing to resume.
    """
    if not resume:
        _claim_empty(folder)
        _write(folder, {"config": config_to_dict(config)})
        return
    there = _read(folder)
    try:
        old = config_to_dict(config_from_dict(there["config"]))
    except (ConfigError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{folder / RUN} has settings this version does not know ({error}): resume with the "
            "crystorus version that started the run"
        ) from error
    different = _differences(_flat(old), _flat(config_to_dict(config)))
    if different:
        more = f" ({len(different)} settings differ)" if len(different) > 1 else ""
        raise TrainingError(
            f"{folder} holds a run with {different[0]}{more}: resume with the run's own settings, "
            "or choose another folder"
        )


def _claim_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"{folder} is a file: give a folder")
    if (folder / RUN).exists():
        raise TrainingError(
            f"{folder} already holds a run: add --resume to go on with it, or choose another folder"
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise TrainingError(f"{folder} is not empty and holds no run: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / RUN
    if not path.is_file():
        raise TrainingError(f"{folder} holds no run to resume: leave out --resume to start one")
    try:
        there = json.loads(path.read_text())
        return dict(there)
    except (ValueError, TypeError, OSError) as error:
        raise TrainingError(
            f"{path} is damaged ({error}): start another run with training.start_from="
            f"{folder / LAST}"
        ) from error


def _write(folder: Path, content: dict[str, Any]) -> None:
    write_whole(folder / RUN, json.dumps(content, indent=2) + "\n")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    keys = [k for k in {**old, **new} if k not in _MAY_CHANGE and old.get(k) != new.get(k)]
    return [f"{key} = {old.get(key)!r}, not {new.get(key)!r}" for key in keys]


def open_data(folder: Path, config: Config) -> tuple[CrystalStore, CrystalStore]:
    """Open the training and validation crystals, as stores; sources are converted once.

    Raises:
        TrainingError: If there is no such file, or a resumed run finds other data.
    """
    if rank_zero_only.rank:
        _wait_for(folder)
    train = _open_one(Path(config.data.train), folder / "data" / "train.store", "data.train")
    validation = _open_one(
        Path(config.data.validation), folder / "data" / "validation.store", "data.validation"
    )
    digests = {"train": train.header["sha256"], "validation": validation.header["sha256"]}
    there = _read(folder)
    for name, digest in there.get("data", digests).items():
        if digest != digests[name]:
            raise TrainingError(
                f"data.{name} has digest {digests[name][:12]}…, the run in {folder} began with "
                f"{digest[:12]}…: put the old data back, or start another run"
            )
    if not rank_zero_only.rank and "data" not in there:
        _write(folder, there | {"data": digests})
    return train, validation


def _wait_for(folder: Path) -> None:
    """Wait until the first process has prepared the data."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < end:
        if (folder / RUN).is_file() and "data" in _read(folder):
            return
        time.sleep(0.2)
    raise TrainingError(
        f"{folder} was not prepared within {_PATIENCE_SECONDS:.0f} s: is it a folder that all "
        "nodes share?"
    )


def _open_one(source: Path, cache: Path, setting: str) -> CrystalStore:
    if not source.exists() and not cache.is_file():
        raise TrainingError(
            f'{setting} = "{source}" does not exist: fetch MP-20 with `crystorus data get mp-20`, '
            f"or give {setting}=… a file of crystals"
        )
    return open_or_build(source, cache, n_workers=min(4, os.cpu_count() or 1))


def read_state(folder: Path) -> dict[str, Any] | None:
    """Read the saved state of a run; None if it was ended before the first was saved.

    Nothing in the file is executed: it may hold tensors and plain values only.

    Raises:
        TrainingError: If the file is damaged or hostile.
    """
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: state[key] for key in ("epoch", "global_step", "tally", "loops")}
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TrainingError(
            f"{path} cannot be resumed from ({first[:120]}): it is damaged or not ours; start "
            f"another run with training.start_from={folder / LAST}"
        ) from error
