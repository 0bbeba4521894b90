"""A whole training run: `train`."""

import dataclasses
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from crystorus.checkpoint import load_checkpoint
from crystorus.config import Config
from crystorus.crystal_model import CrystalModel, build_model
from crystorus.data.batching import BatchLoader, BatchSampler, CrystalDataset
from crystorus.data.store import CrystalStore
from crystorus.diffusion.strain_process import fit_cell_statistics
from crystorus.geometry import Crystals
from crystorus.train.averaging import Averaging
from crystorus.train.callbacks import Conductor, Evaluation, Keeper, StopSignal, TrainingLog
from crystorus.train.card import describe_origin
from crystorus.train.checks import check_settings
from crystorus.train.errors import Interrupted, TrainingError
from crystorus.train.folder import STATE, claim, open_data, read_state
from crystorus.train.logs import build_loggers
from crystorus.train.module import Tally, TrainingModule
from crystorus.train.progress import ProgressLine

_FEWEST = 8
_CHOICE_SEED = 1


def train(config: Config, folder: Path, *, resume: bool = False) -> None:
    """Train a model; checkpoints, logs and the state to go on from appear in a folder.

    Args:
        config: All settings.
        folder: The folder, which must not hold another run.
        resume: Go on with the run that is there. On a CPU the result is that of a run that was
            never interrupted, bit for bit.

    Raises:
        TrainingError: If the run cannot start, or a loss or gradient is not finite.
        KeyboardInterrupt: After Ctrl-C, once the state is saved.
    """
    check_settings(config)
    if not rank_zero_only.rank:
        claim(folder, config, resume=resume)
    train_set, validation_set = _datasets(folder, config)
    state = read_state(folder) if resume else None
    if state is not None and _is_finished(state, config):
        return
    with _quiet():
        model = _start_model(config, train_set)
        module = TrainingModule(model, folder)
        origin = describe_origin(
            config, train_set, validation_set, sum(p.numel() for p in module.parameters())
        )
        stop = StopSignal()
        evaluation = Evaluation(folder, origin, _references(validation_set, config))
        trainer = _trainer(
            config,
            folder,
            _callbacks(folder, config, evaluation, stop),
            last_step=state["global_step"] if state else 0,
        )
        loaders = _loaders(trainer, train_set, validation_set, config)
        try:
            with stop.listening():
                trainer.fit(
                    module, *loaders, weights_only=True, ckpt_path=folder / STATE if state else None
                )
        except Interrupted:
            raise KeyboardInterrupt from None


def _datasets(folder: Path, config: Config) -> tuple[CrystalDataset, CrystalDataset]:
    """Return the training crystals, and a fixed choice of the validation crystals."""
    train, validation = open_data(folder, config)
    chosen = _small_enough(train, config, "data.train")
    if len(chosen) < _FEWEST:
        raise TrainingError(
            f"data.train has {len(chosen)} crystals of at most {config.data.max_atoms} atoms, at "
            f"least {_FEWEST} are needed: give more crystals or raise data.max_atoms"
        )
    judged = _small_enough(validation, config, "data.validation")
    judged = np.random.default_rng(_CHOICE_SEED).permutation(judged)
    if config.training.validation_crystals:
        judged = judged[: config.training.validation_crystals]
    return CrystalDataset(train, chosen), CrystalDataset(validation, judged)


def _small_enough(store: CrystalStore, config: Config, setting: str) -> np.ndarray:
    chosen = np.flatnonzero(store.n_atoms <= config.data.max_atoms)
    if not len(chosen):
        raise TrainingError(
            f"{setting} has no crystal of at most {config.data.max_atoms} atoms: raise "
            "data.max_atoms or give other crystals"
        )
    return chosen


def _is_finished(state: dict, config: Config) -> bool:
    """Tell whether a saved run has nothing left to do."""
    processed = state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    spent = Tally(**state["tally"]).share_of_time(config.training)
    return processed >= config.training.epochs or spent >= 1


def _start_model(config: Config, train_set: CrystalDataset) -> CrystalModel:
    """Return the system to train, with new weights or those of `start_from`."""
    crystals = train_set[range(len(train_set))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        model = build_model(config, fit_cell_statistics(crystals))
    if config.training.start_from:
        _take_weights(model, Path(config.training.start_from))
    return dataclasses.replace(
        model,
        trained_elements=frozenset(crystals.atomic_numbers.unique().tolist()),
        max_atoms=int(crystals.n_atoms.max()),
    )


def _take_weights(model: CrystalModel, path: Path) -> None:
    source = load_checkpoint(path)
    mine, theirs = model.config, source.config
    if (mine.preset, mine.network) != (theirs.preset, theirs.network):
        raise TrainingError(
            f"training.start_from = {path} has preset {theirs.preset} and network "
            f"{theirs.network}, the configuration {mine.preset} and {mine.network}: make the "
            "network settings equal"
        )
    model.denoiser.load_state_dict(source.denoiser.state_dict())


def _references(validation_set: CrystalDataset, config: Config) -> Crystals | None:
    """Return the validation crystals whose compositions are sampled."""
    count = min(config.training.sample_crystals, len(validation_set))
    if not config.training.sample_every or not count:
        return None
    return validation_set[range(count)]


def _callbacks(
    folder: Path, config: Config, evaluation: Evaluation, stop: StopSignal
) -> list[Callback]:
    conductor, averaging = Conductor(stop), Averaging(config.training.ema_decay)
    keeper = Keeper(folder, conductor, evaluation, averaging)
    return [conductor, evaluation, averaging, TrainingLog(), ProgressLine(evaluation), keeper]


def _trainer(
    config: Config, folder: Path, callbacks: list[Callback], *, last_step: int
) -> pl.Trainer:
    settings = config.training
    several = settings.devices * settings.nodes > 1
    return pl.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy="ddp" if several else "auto",
        max_epochs=settings.epochs,
        check_val_every_n_epoch=settings.validate_every,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        logger=build_loggers(folder, last_step=last_step),
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _loaders(
    trainer: pl.Trainer, train_set: CrystalDataset, validation_set: CrystalDataset, config: Config
) -> tuple[BatchLoader, BatchLoader]:
    s = config.training
    rank, world = trainer.global_rank, trainer.world_size
    try:
        ours = BatchSampler(
            train_set.n_atoms,
            batch_size=s.batch_size,
            batch_pairs=s.batch_pairs,
            seed=s.seed,
            rank=rank,
            world=world,
        )
        theirs = BatchSampler(
            validation_set.n_atoms,
            batch_size=s.batch_size,
            batch_pairs=s.batch_pairs,
            seed=0,
            rank=rank,
            world=world,
            fixed=True,
        )
    except ValueError as error:
        raise TrainingError(str(error)) from error
    return BatchLoader(train_set, ours, workers=s.workers), BatchLoader(validation_set, theirs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice to itself: it is about a code of which the user sees nothing."""
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        try:
            yield
        finally:
            logger.setLevel(before)
