"""Train a scorer: which of several crystals made of one composition is its known crystal.

The folder of a run:

    run.json          settings, status and the digest of the data
    data.store        the known crystals, if their source is not a store
    candidates/       made crystals and which are right, one file per 64 compositions
    checkpoint/       the result: the checkpoint with its scorer
"""

import copy
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crystal_fidelity.files import atomic_path, check_writable, disk_errors
from crystal_fidelity.symmetry import dataset
from crystal_fidelity.workers import Lost, Workers, cores, run
from crystorus.checkpoint import (
    CARD,
    SHIPPED,
    SKELETONS,
    WEIGHTS,
    loaded_checkpoint,
    save_scorer,
)
from crystorus.config import SamplerConfig
from crystorus.crystal_model import CrystalModel
from crystorus.data.compositions import Composition
from crystorus.data.convert import split
from crystorus.data.store import CrystalStore, open_or_build
from crystorus.diffusion.process import Diffusion
from crystorus.diffusion.space_groups import Skeleton, SpaceGroups
from crystorus.errors import GenerationError, OutputError, TrainingError
from crystorus.geometry import Crystals
from crystorus.networks.fieldnet import FieldDenoiser, FieldNet
from crystorus.networks.precision import has_fast_bf16
from crystorus.networks.scorer import Scorer
from crystorus.runs.folder import claim
from crystorus.sample.choosing import candidate_seed
from crystorus.sample.requests import crystal_seed
from crystorus.sample.sampler import sampling_at
from crystorus.templates.skeletons import WeightedSkeleton, in_turn, skeleton_of, table_of
from crystorus.terminal import log, progress
from crystorus.train.options import ScorerOptions
from crystorus.train.quality import rms_distance
from crystorus.train.space_groups import SYMPREC

CHECKPOINT, CANDIDATES, CACHE = "checkpoint", "candidates", "data.store"
PART = 64
"""Compositions per file of candidates."""
HELD_OUT = 20
"""One composition in so many is only looked at."""
LEVEL = 0.1
"""Fraction of T that the network is told, and that crystals are noised to while it learns."""
ALONE_WEIGHT = 0.3
"""Weight of the cross-entropy of every candidate alone beside that within its group."""
BATCH = 16
"""Groups per step."""
WARM_UP = 50
"""Steps over which the learning rate rises."""
RATES = (2e-4, 1e-3, 3e-2)
"""Peak learning rates of the network's last block, of the head and of the three numbers that say
what weights of skeletons are worth."""
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0


@dataclass(frozen=True, eq=False)
class Candidates:
    """As many candidates of each of several compositions.

    Attributes:
        crystals: Finished crystals, composition by composition.
        weights: Of the skeletons that they were made in; NaN without symmetry.
        right: Which of them are the known one.
    """

    crystals: Crystals
    weights: Float[Tensor, "compositions candidates"]
    right: Bool[Tensor, "compositions candidates"]

    def __len__(self) -> int:
        return len(self.right)

    def select(self, places: Sequence[int]) -> "Candidates":
        """Return the candidates of the compositions at these places.

        Args:
            places: Of compositions, from 0.
        """
        several, chosen = self.right.shape[1], torch.tensor(places, dtype=torch.long)
        crystals = [several * place + n for place in places for n in range(several)]
        return Candidates(self.crystals.select(crystals), self.weights[chosen], self.right[chosen])

    @staticmethod
    def concat(parts: "Sequence[Candidates]") -> "Candidates":
        """Join the candidates of all compositions.

        Args:
            parts: Of one width.
        """
        return Candidates(
            Crystals.concat([part.crystals for part in parts]),
            torch.cat([part.weights for part in parts]),
            torch.cat([part.right for part in parts]),
        )


class Report(NamedTuple):
    """What a choice among the candidates of held-out compositions finds."""

    compositions: int
    first: float
    """Fraction whose first candidate is right."""
    chosen: float
    """Fraction whose candidate with the most confidence is right."""
    any: float
    """Fraction with a right candidate."""
    loss: float
    """What is trained to be small (`scorer_loss`)."""

    def __str__(self) -> str:
        return (
            f"of {self.compositions} held-out compositions the first candidate is right for "
            f"{self.first:.1%}, the chosen one for {self.chosen:.1%}, any for {self.any:.1%}; "
            f"loss {self.loss:.3f}"
        )


def train_scorer(data: Path, options: ScorerOptions) -> tuple[Path, Report | None]:
    """Make the candidates, train the scorer, and write the checkpoint that has it.

    Args:
        data: Known crystals: a store, or anything that `data build` reads.
        options: Where the run goes, and how large it is.

    Returns:
        The folder of the checkpoint, and what its scorer, of the pass with the least loss there,
        finds among held-out compositions; None if there are too few to hold any out.

    Raises:
        TrainingError: If the data are missing, or there is nothing to learn from.
        OutputError: If the folder is another run's, or in use.
        GenerationError: If a worker dies.
        CheckpointError: If the checkpoint cannot be used.
        ReadingError: If the data cannot be read.
    """
    source, out = options.checkpoint or SHIPPED, options.out
    if not data.exists() and not (out / CACHE).is_file():
        raise TrainingError(
            f"{data} does not exist: fetch MP-20 with `crystorus data get mp-20`, or give a file "
            "of crystals"
        )
    check_writable(out, remedy="choose another --out")
    model = loaded_checkpoint(source)
    _network_of(model)
    decisive = {"candidates": options.candidates, "compositions": options.compositions}
    decisive["skeletons"] = len(model.skeletons)
    settings = {"checkpoint_sha256": model.digest, "seed": options.seed} | decisive
    with (
        claim(out, "train-scorer", settings, names=(CANDIDATES, CHECKPOINT), replace="") as folder,
        disk_errors(out),
    ):
        if folder.complete:
            folder.reopen()
        store = open_or_build(
            data, out / CACHE, n_workers=options.workers, remedy="choose another --out"
        )
        digest = store.header["sha256"]
        if folder.facts.get("data_sha256", digest) != digest:
            raise OutputError(
                f"{out} holds candidates of other data than SHA-256 {digest[:12]}…: choose another "
                "--out"
            )
        folder.note(data_sha256=digest)
        sampler, bf16 = sampling_at("fast", model)[0], has_fast_bf16("cpu")
        chosen = np.random.default_rng(options.seed).permutation(len(store))[: options.compositions]
        with progress("candidates", "compositions") as update:
            made = make_candidates(
                store,
                chosen.tolist(),
                options,
                sampler=replace(sampler, precision="bf16" if bf16 else "fp32"),
                on_done=update,
            )
        places = range(len(made))
        seen = places[::HELD_OUT] if len(made) >= 2 * HELD_OUT else places[:0]
        held_out = made.select(seen)
        learnt = made.select([n for n in places if n not in seen])
        result = out / CHECKPOINT
        result.mkdir(exist_ok=True)
        for name in (WEIGHTS, CARD, SKELETONS):
            if (source / name).exists():  # not every checkpoint has skeletons
                shutil.copyfile(source / name, result / name)
        about = settings | {"data_sha256": digest, "compositions": len(made)}
        about["began_as"] = model.scorer_digest or model.digest
        best = None
        fitting = fit_scorer(model, learnt, epochs=options.epochs, seed=options.seed, bf16=bf16)
        with progress("scorer", "passes", total=options.epochs) as update:
            for epoch, (scorer, loss) in enumerate(fitting, start=1):
                found = report(scorer, held_out) if len(held_out) else None
                log("scorer", f"pass {epoch} of {options.epochs}, loss {loss:.3f}; {found}")
                if found is None or best is None or found.loss < best.loss:
                    best = found
                    about |= {"epochs": epoch, "held_out": found and found._asdict()}
                    save_scorer(scorer, result, about)
                update(epoch, options.epochs)
        folder.finish()
    return result, best


def make_candidates(
    store: CrystalStore,
    order: Sequence[int],
    options: ScorerOptions,
    *,
    sampler: SamplerConfig,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> Candidates:
    """Make what is missing of the candidates and return all of them.

    They are kept in parts, one file each, so that an interrupted run goes on from the finished
    ones.

    Args:
        store: The known crystals.
        order: Which of them, by number.
        options: How many of each, where they go, and who makes them.
        sampler: How they are made.
        on_done: Called with the number of compositions finished so far, and of all.

    Raises:
        GenerationError: If a worker dies.
        OSError: If a part cannot be written.
    """
    folder = options.out / CANDIDATES
    folder.mkdir(parents=True, exist_ok=True)
    by_size = sorted(order, key=lambda n: (int(store.n_atoms[n]), n))
    parts = {
        folder / f"part-{start // PART:05d}.safetensors": by_size[start : start + PART]
        for start in range(0, len(by_size), PART)
    }
    missing = [path for path in parts if not path.is_file()]
    jobs = []
    for path in missing:
        known = store.select(parts[path])
        seeds = [
            crystal_seed(options.seed, Composition.of(crystal.atomic_numbers.tolist()), n)
            for n, crystal in zip(parts[path], known.split(), strict=True)
        ]
        jobs.append((options.checkpoint or SHIPPED, known, seeds, sampler, options.candidates))
    done = len(by_size) - sum(len(parts[path]) for path in missing)
    on_done(done, len(by_size))
    workers = Workers(options.workers, threads=max(cores() // options.workers, 1))
    for number, made in run(_make_part, jobs, workers):
        if isinstance(made, Lost):
            raise GenerationError(
                "a worker process died (killed, or out of memory): take fewer --workers, the same "
                "command goes on from the finished candidates"
            )
        with atomic_path(missing[number]) as aside:
            save_file(made, aside)
        done += len(made["right"])
        on_done(done, len(by_size))
    found = []
    for path in parts:
        tensors = load_file(path)
        weights, right = tensors.pop("weights"), tensors.pop("right")
        found.append(Candidates(Crystals(**tensors), weights, right))
    return Candidates.concat(found)


def _make_part(job: tuple[Path, Crystals, list[int], SamplerConfig, int]) -> dict[str, Tensor]:
    """Make all candidates of a part, those of one composition side by side, and compare them.

    They are what `sample --candidates` chooses among, the skeleton of the known crystal itself left
    out, and one without symmetry.
    """
    checkpoint, known, seeds, sampler, candidates = job
    model = loaded_checkpoint(checkpoint)
    table, number_of = table_of(model.skeletons), {s: n for n, s in enumerate(model.skeletons)}
    skeletons = []
    for crystal in split(known):
        composition = Composition.of(crystal.atomic_numbers.tolist())
        own = number_of.get(skeleton_of(crystal, dataset(crystal, SYMPREC)), -1)
        several = in_turn(table.find(composition, limit=candidates, exclude=own), candidates - 1)
        free = Skeleton(1, tuple((z, 0) for z in composition.atomic_numbers))
        several += [WeightedSkeleton(free, math.nan)] * (candidates - len(several))
        skeletons.append(several)
    made = [
        model.sample(
            torch.tensor([z for one in several for z in one.skeleton.atomic_numbers]),
            known.n_atoms,
            seeds=[candidate_seed(seed, number) for seed in seeds],
            sampler=sampler,
            groups=SpaceGroups.of([one.skeleton for one in several]),
        ).split()
        for number, several in enumerate(zip(*skeletons, strict=True))
    ]
    groups = list(zip(*made, strict=True))
    right = [
        [rms_distance(crystal, truth) is not None for crystal in group]
        for group, truth in zip(groups, known.split(), strict=True)
    ]
    crystals = Crystals.concat([crystal for group in groups for crystal in group])
    return {
        "lattice": crystals.lattice.contiguous(),
        "frac_coords": crystals.frac_coords.contiguous(),
        "atomic_numbers": crystals.atomic_numbers.contiguous(),
        "n_atoms": crystals.n_atoms.contiguous(),
        "weights": torch.tensor([[one.weight for one in several] for several in skeletons]),
        "right": torch.tensor(right),
    }


def fit_scorer(
    model: CrystalModel,
    candidates: Candidates,
    *,
    epochs: int = 4,
    seed: int = 0,
    bf16: bool = True,
    rates: tuple[float, float, float] = RATES,
) -> Iterator[tuple[Scorer, float]]:
    """Fit a scorer of a model's crystals; it begins as the model's scorer, else as its network.

    Only the last block of the network and the head learn: all of it learns its crystals by heart.
    The loss is -log of the fraction that a softmax over the candidates of a composition gives to
    the right ones; every candidate alone adds its cross-entropy. In every pass the crystals are
    noised anew, a little, so that there is less to learn by heart.

    Args:
        model: The checkpoint that made the candidates.
        candidates: What to learn from.
        epochs: Passes over them.
        seed: Decides their order and the head's first weights.
        bf16: Whether products inside the network's blocks are in bf16.
        rates: Peak learning rates, as in `RATES`; they fall to zero by half a cosine.

    Yields:
        After every pass the scorer, the same one, and the mean loss.

    Raises:
        TrainingError: If the model is of another preset, or there is nothing to tell apart.
    """
    network = _network_of(model)
    right = candidates.right
    if not (right.any(1) & ~right.all(1)).any():
        raise TrainingError(
            f"of {len(candidates)} compositions none has both right and wrong candidates: ask for "
            "more --compositions or --candidates, or train the checkpoint further"
        )
    torch.manual_seed(seed)
    scorer = copy.deepcopy(
        model.scorer or Scorer(network, level=round(LEVEL * model.diffusion.steps))
    )
    scorer.network.requires_grad_(False)
    last = scorer.network.blocks[-1].requires_grad_(True)
    parts = (last.parameters(), scorer.head.parameters(), [scorer.prior])
    groups_of_weights = [{"params": list(part)} for part in parts]
    optimizer = torch.optim.AdamW(groups_of_weights, weight_decay=WEIGHT_DECAY)
    sizes = candidates.crystals.n_atoms.view(right.shape)[:, 0].numpy()
    generator, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    steps, step = epochs * -(-len(candidates) // BATCH), 0
    for _ in range(epochs):
        scorer.train()
        losses = []
        # Batches of similar size, in random order.
        order = np.argsort(sizes + generator.uniform(0, 1.5, len(sizes)), kind="stable")
        starts = range(0, len(order), BATCH)
        for number in generator.permutation(len(starts)):
            chosen = candidates.select(order[starts[number] : starts[number] + BATCH].tolist())
            factor = min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            odds = _odds(scorer, chosen, model.diffusion, noise, bf16=bf16)
            loss = scorer_loss(odds, chosen.right)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(scorer.parameters(), CLIP_NORM)
            optimizer.step()
            losses.append(float(loss.detach()))
            step += 1
        yield scorer.eval(), float(np.mean(losses))


def _network_of(model: CrystalModel) -> FieldNet:
    """Return the network that a scorer of the model's crystals begins as."""
    if not isinstance(model.denoiser, FieldDenoiser):
        raise TrainingError(
            f"a scorer is trained from the default network, this checkpoint's is "
            f"{model.config.preset}: give a checkpoint of the default preset"
        )
    return model.denoiser.network


def scorer_loss(
    odds: Float[Tensor, "compositions candidates"],
    right: Bool[Tensor, "compositions candidates"],
) -> Float[Tensor, ""]:
    """Return the loss of a batch.

    Args:
        odds: Log-odds that each candidate is right.
        right: Which are.
    """
    mixed = right.any(1) & ~right.all(1)
    fraction = odds.log_softmax(1).masked_fill(~right, -torch.inf)[mixed].logsumexp(1)
    alone = nn.functional.binary_cross_entropy_with_logits(odds, right.to(odds))
    return -fraction.sum() / len(odds) + ALONE_WEIGHT * alone


@torch.no_grad()
def report(scorer: Scorer, candidates: Candidates) -> Report:
    """Let the scorer choose among the candidates of every composition.

    Args:
        scorer: The scorer.
        candidates: Scored by what is right.
    """
    scorer.eval()
    several = range(len(candidates))
    parts = [several[first : first + BATCH] for first in several[::BATCH]]
    odds = torch.cat([_odds(scorer, candidates.select(part)) for part in parts])
    right = candidates.right
    taken = right.gather(1, odds.argmax(1, keepdim=True))
    first, chosen, some = (float(s.double().mean()) for s in (right[:, 0], taken, right.any(1)))
    return Report(len(candidates), first, chosen, some, float(scorer_loss(odds, right)))


def _odds(
    scorer: Scorer,
    candidates: Candidates,
    diffusion: Diffusion | None = None,
    noise: torch.Generator | None = None,
    *,
    bf16: bool = False,
) -> Float[Tensor, "compositions candidates"]:
    """Return the log-odds of all candidates, noised if there is a process."""
    crystals = candidates.crystals
    if diffusion is not None:
        atoms = torch.randn(crystals.frac_coords.shape, generator=noise)
        cells = torch.randn((len(crystals), 6), generator=noise)
        t = torch.full_like(crystals.n_atoms, scorer.level)
        crystals, _ = diffusion.noise(crystals, t, atoms, cells)
    odds = scorer(crystals, candidates.weights.flatten(), "bf16" if bf16 else "fp32")
    return odds.float().view(candidates.right.shape)
