"""From a checkpoint and known crystals to a checkpoint with a judge."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import typer

from crystorus.checkpoint import CARD, SHIPPED, WEIGHTS, load_checkpoint, save_judge
from crystorus.crystal_model import CrystalModel
from crystorus.data.files import write_whole
from crystorus.data.store import CrystalStore, open_or_build
from crystorus.diffusion.algorithms import Precision
from crystorus.judging.candidates import Group, make_groups
from crystorus.judging.errors import JudgingError
from crystorus.judging.training import Lessons, Report, network_of, train_judge
from crystorus.networks.judge import Judge
from crystorus.networks.precision import has_fast_bf16
from crystorus.sample.quality import sampler_at
from crystorus.sample.workers import Crew
from crystorus.terminal import bar, say

JUDGED, CANDIDATES, SETTINGS, CACHE = "judged", "candidates", "judging.json", "data.store"
HELD_OUT = 20
"""One composition in so many is only looked at."""
LEAST, MOST = 2, 100


@dataclass(frozen=True)
class JudgeOrder:
    """What to train a judge from."""

    data: Path
    """Known crystals: a store, or anything that `data build` reads."""
    out: Path
    """Folder of the run."""
    checkpoint: Path | None = None
    """A checkpoint folder; the shipped one where None."""
    compositions: int = 8000
    """Known crystals to learn from, at most."""
    candidates: int = 8
    """Crystals made of each composition."""
    epochs: int = 4
    """Passes over them."""
    seed: int = 0
    """Decides which crystals are taken, their noise, and the order of learning."""
    workers: int = 1
    """Processes that make crystals."""


def carry_out(order: JudgeOrder) -> Path:
    """Make the candidates, train the judge, and write the checkpoint that has it.

    Returns:
        The folder of that checkpoint.

    Raises:
        JudgingError: If the order makes no sense, or its folder is another run's.
        CheckpointError: If the checkpoint cannot be used.
        ReadingError: If the data cannot be read.
    """
    _check(order)
    source = order.checkpoint or SHIPPED
    model = load_checkpoint(source)
    network_of(model)
    order.out.mkdir(parents=True, exist_ok=True)
    store = _open(order)
    settings = _settings(order, model, store)
    _claim(order.out, settings)
    judge, report = _train(order, model, _groups(order, model, store, source))
    folder = order.out / JUDGED
    folder.mkdir(exist_ok=True)
    for name in (WEIGHTS, CARD):
        shutil.copyfile(source / name, folder / name)
    about = settings | {"lessons": asdict(_lessons(order))}
    if report is not None:
        about["held_out"] = asdict(report)
    save_judge(judge, folder, about)
    said = "" if report is None else f"; {_words(report)}"
    typer.echo(f"{folder}: a checkpoint with its judge{said}")
    return folder


def _train(
    order: JudgeOrder, model: CrystalModel, groups: Sequence[Group]
) -> tuple[Judge, Report | None]:
    """Train on most of the groups, telling after every pass what the others say."""
    learnt, held_out = _split(groups)
    last: list[Report | None] = [None]

    def tell(epoch: int, loss: float, report: Report | None) -> None:
        seen = "" if report is None else f"; {_words(report)}"
        say("judge", f"pass {epoch} of {order.epochs}, loss {loss:.3f}{seen}")
        last[0] = report

    with bar("judge", "steps") as progress:
        judge = train_judge(
            model, learnt, _lessons(order), held_out=held_out, on_step=progress, on_epoch=tell
        )
    return judge, last[0]


def _lessons(order: JudgeOrder) -> Lessons:
    return Lessons(epochs=order.epochs, seed=order.seed, bf16=has_fast_bf16("cpu"))


def _check(order: JudgeOrder) -> None:
    limits = (
        ("compositions", order.compositions, 1, 10_000_000),
        ("candidates", order.candidates, LEAST, MOST),
        ("epochs", order.epochs, 1, 1000),
        ("workers", order.workers, 1, 1000),
    )
    for name, value, least, most in limits:
        if not least <= value <= most:
            raise JudgingError(f"--{name} is {value}: give {least} to {most}")


def _open(order: JudgeOrder) -> CrystalStore:
    cache = order.out / CACHE
    if not order.data.exists() and not cache.is_file():
        raise JudgingError(
            f"{order.data} does not exist: fetch MP-20 with `crystorus data get mp-20`, or give a "
            "file of crystals"
        )
    return open_or_build(order.data, cache, n_workers=order.workers)


def _settings(order: JudgeOrder, model: CrystalModel, store: CrystalStore) -> dict[str, Any]:
    """Describe the candidates, for a folder to recognise them."""
    return {
        "checkpoint_sha256": model.digest,
        "data_sha256": store.header["sha256"],
        "compositions": min(order.compositions, len(store)),
        "candidates": order.candidates,
        "seed": order.seed,
    }


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write what a folder is for, or make sure that it is for this."""
    path = folder / SETTINGS
    if not path.is_file():
        write_whole(path, json.dumps(settings, indent=2) + "\n")
        return
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise JudgingError(f"{path} is damaged ({error}): give another --out") from error
    differing = [k for k, v in settings.items() if before.get(k) != v]
    if differing:
        name = differing[0]
        raise JudgingError(
            f"{folder} holds candidates of another run ({name} {before.get(name)} there, "
            f"{settings[name]} now): give another --out"
        )


def _groups(
    order: JudgeOrder, model: CrystalModel, store: CrystalStore, source: Path
) -> list[Group]:
    config = model.config
    walk = sampler_at("fast", config.sampling, config.preset, model.diffusion.steps)
    precision: Precision = "bf16" if has_fast_bf16("cpu") else "fp32"
    chosen = np.random.default_rng(order.seed).permutation(len(store))[: order.compositions]
    with bar("candidates", "compositions") as progress:
        return make_groups(
            store,
            chosen.tolist(),
            order.out / CANDIDATES,
            Crew(order.workers, source),
            sampler=replace(walk, precision=precision),
            candidates=order.candidates,
            seed=order.seed,
            on_done=lambda done: progress(done, len(chosen)),
        )


def _split(groups: Sequence[Group]) -> tuple[list[Group], list[Group]]:
    """Return the groups to learn from and those that are only looked at, of all sizes."""
    if len(groups) < 2 * HELD_OUT:
        return list(groups), []
    learnt = [group for n, group in enumerate(groups) if n % HELD_OUT]
    return learnt, list(groups[::HELD_OUT])


def _words(report: Report) -> str:
    return (
        f"of {report.groups} held-out compositions the first candidate is right for "
        f"{report.first:.1%}, the chosen one for {report.chosen:.1%}, any for {report.any:.1%}"
    )
