"""Train a scorer: which of several crystals made of one composition is its known crystal.

The folder of a run:

    run.json          settings, status and the digest of the data
    data.store        the known crystals, if their source is not a store
    candidates/       made crystals and which are right, one file per 64 compositions
    checkpoint/       the result: the checkpoint with its scorer
"""

import copy
import functools
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crystal_fidelity.files import atomic_path, disk_errors
from crystal_fidelity.workers import Lost, Workers, cores, run
from crystorus.checkpoint import CARD, SHIPPED, SKELETONS, WEIGHTS, load_checkpoint, save_scorer
from crystorus.config import SamplerConfig
from crystorus.crystal_model import CrystalModel
from crystorus.data.compositions import Composition
from crystorus.data.store import CrystalStore, open_or_build
from crystorus.diffusion.process import Diffusion
from crystorus.errors import GenerationError, OutputError, TrainingError
from crystorus.geometry import Crystals
from crystorus.networks.fieldnet import FieldDenoiser, FieldNet
from crystorus.networks.precision import has_fast_bf16
from crystorus.networks.scorer import Scorer
from crystorus.runs.folder import claim
from crystorus.sample.choosing import candidate_seed
from crystorus.sample.requests import crystal_seed
from crystorus.sample.sampler import sampler_at
from crystorus.terminal import log, progress
from crystorus.train.options import ScorerOptions
from crystorus.train.quality import rms_distance

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
RATES = (5e-4, 1e-3)
"""Peak learning rates of the network and of the head, which is new."""
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0


@dataclass(frozen=True, eq=False)
class CandidateGroup:
    """Candidates of one composition.

    Attributes:
        crystals: K finished crystals.
        right: Which of them are the known one.
    """

    crystals: Crystals
    right: Bool[Tensor, " candidates"]


@dataclass(frozen=True)
class Report:
    """What a choice among the candidates of held-out groups finds.

    Attributes:
        groups: How many there are.
        first: Fraction whose first candidate is right.
        chosen: Fraction whose candidate with the most confidence is right.
        any: Fraction with a right candidate.
        brier: Mean square of confidence minus outcome over all candidates.
    """

    groups: int
    first: float
    chosen: float
    any: float
    brier: float

    def __str__(self) -> str:
        return (
            f"of {self.groups} held-out compositions the first candidate is right for "
            f"{self.first:.1%}, the chosen one for {self.chosen:.1%}, any for {self.any:.1%}"
        )


def train_scorer(data: Path, options: ScorerOptions) -> tuple[Path, Report | None]:
    """Make the candidates, train the scorer, and write the checkpoint that has it.

    Args:
        data: Known crystals: a store, or anything that `data build` reads.
        options: Where the run goes, and how large it is.

    Returns:
        The folder of the checkpoint, and what its scorer finds among held-out compositions; None
        if there are too few to hold any out.

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
    model = _loaded(source)
    _network_of(model)
    decisive = {"candidates": options.candidates, "compositions": options.compositions}
    settings = {"checkpoint_sha256": model.digest, "seed": options.seed} | decisive
    with (
        claim(out, "train-scorer", settings, names=(CANDIDATES, CHECKPOINT), replace="") as folder,
        disk_errors(out),
    ):
        if folder.complete:
            folder.reopen()
        store = open_or_build(data, out / CACHE, n_workers=options.workers)
        digest = store.header["sha256"]
        if folder.facts.get("data_sha256", digest) != digest:
            raise OutputError(
                f"{out} holds candidates of other data than SHA-256 {digest[:12]}…: choose another "
                "--out"
            )
        folder.note(data_sha256=digest)
        config, bf16 = model.config, has_fast_bf16("cpu")
        sampler = sampler_at("fast", config.sampling, config.preset, model.diffusion.steps)
        chosen = np.random.default_rng(options.seed).permutation(len(store))[: options.compositions]
        with progress("candidates", "compositions") as update:
            groups = make_groups(
                store,
                chosen.tolist(),
                options,
                sampler=replace(sampler, precision="bf16" if bf16 else "fp32"),
                on_done=update,
            )
        learnt, held_out = groups, []
        if len(groups) >= 2 * HELD_OUT:
            held_out = groups[::HELD_OUT]
            learnt = [group for n, group in enumerate(groups) if n % HELD_OUT]
        found = None
        fitting = fit_scorer(model, learnt, epochs=options.epochs, seed=options.seed, bf16=bf16)
        with progress("scorer", "passes", total=options.epochs) as update:
            for epoch, (scorer, loss) in enumerate(fitting, start=1):
                found = report(scorer, held_out) if held_out else None
                log("scorer", f"pass {epoch} of {options.epochs}, loss {loss:.3f}; {found}")
                update(epoch, options.epochs)
        result = out / CHECKPOINT
        result.mkdir(exist_ok=True)
        for name in (WEIGHTS, CARD, SKELETONS):
            if (source / name).exists():  # not every checkpoint has skeletons
                shutil.copyfile(source / name, result / name)
        about = settings | {"data_sha256": digest, "compositions": len(groups)}
        about |= {"epochs": options.epochs, "held_out": found and asdict(found)}
        save_scorer(scorer, result, about)
        folder.finish()
    return result, found


def make_groups(
    store: CrystalStore,
    order: Sequence[int],
    options: ScorerOptions,
    *,
    sampler: SamplerConfig,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> list[CandidateGroup]:
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
    return [group for path in parts for group in _read_part(path)]


@functools.lru_cache(maxsize=1)
def _loaded(checkpoint: Path) -> CrystalModel:
    """Load the model of this process, once."""
    return load_checkpoint(checkpoint)


def _make_part(job: tuple[Path, Crystals, list[int], SamplerConfig, int]) -> dict[str, Tensor]:
    """Make all candidates of a part, those of one composition side by side, and compare them."""
    checkpoint, known, seeds, sampler, candidates = job
    model = _loaded(checkpoint)
    made = [
        model.sample(
            known.atomic_numbers,
            known.n_atoms,
            seeds=[candidate_seed(seed, number) for seed in seeds],
            sampler=sampler,
        ).split()
        for number in range(candidates)
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
        "right": torch.tensor(right),
    }


def _read_part(path: Path) -> Iterator[CandidateGroup]:
    tensors = load_file(path)
    right = tensors.pop("right")
    crystals, candidates = Crystals(**tensors), right.shape[1]
    for n, row in enumerate(right):
        yield CandidateGroup(crystals.select(range(n * candidates, (n + 1) * candidates)), row)


def fit_scorer(
    model: CrystalModel,
    groups: Sequence[CandidateGroup],
    *,
    epochs: int = 4,
    seed: int = 0,
    bf16: bool = True,
    rates: tuple[float, float] = RATES,
) -> Iterator[tuple[Scorer, float]]:
    """Fit a scorer of a model's crystals; it begins as the model's own network.

    Within a group with right and wrong candidates the loss is -log of the fraction that a softmax
    gives to the right ones; every candidate alone adds its cross-entropy. In every pass the
    crystals are noised anew, a little, so that there is less to learn by heart.

    Args:
        model: The checkpoint that made the candidates.
        groups: What to learn from.
        epochs: Passes over them.
        seed: Decides their order and the head's first weights.
        bf16: Whether products inside the network's blocks are in bf16.
        rates: Peak learning rates of network and head; they fall to zero by half a cosine.

    Yields:
        After every pass the scorer, the same one, and the mean loss.

    Raises:
        TrainingError: If the model is of another preset, or there is nothing to tell apart.
    """
    network = _network_of(model)
    if not any(bool(group.right.any() and not group.right.all()) for group in groups):
        raise TrainingError(
            f"of {len(groups)} compositions none has both right and wrong candidates: ask for more "
            "--compositions or --candidates, or train the checkpoint further"
        )
    torch.manual_seed(seed)
    scorer = Scorer(copy.deepcopy(network), level=round(LEVEL * model.diffusion.steps))
    parts = ({"params": scorer.network.parameters()}, {"params": scorer.head.parameters()})
    optimizer = torch.optim.AdamW(parts, weight_decay=WEIGHT_DECAY)
    sizes = np.array([int(group.crystals.n_atoms[0]) for group in groups])
    generator, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    steps, step = epochs * -(-len(groups) // BATCH), 0
    for _ in range(epochs):
        scorer.train()
        losses = []
        # Batches of similar size, in random order.
        order = np.argsort(sizes + generator.uniform(0, 1.5, len(sizes)), kind="stable")
        starts = range(0, len(order), BATCH)
        for number in generator.permutation(len(starts)):
            chosen = [groups[n] for n in order[starts[number] : starts[number] + BATCH]]
            factor = min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            odds, right = _odds(scorer, chosen, model.diffusion, noise, bf16=bf16)
            loss = scorer_loss(odds, right)
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
    odds: Float[Tensor, "groups candidates"], right: Bool[Tensor, "groups candidates"]
) -> Float[Tensor, ""]:
    """Return the loss of a batch of groups.

    Args:
        odds: Log-odds that each candidate is right.
        right: Which are.
    """
    mixed = right.any(1) & ~right.all(1)
    fraction = odds.log_softmax(1).masked_fill(~right, -torch.inf)[mixed].logsumexp(1)
    alone = nn.functional.binary_cross_entropy_with_logits(odds, right.to(odds))
    return -fraction.sum() / len(odds) + ALONE_WEIGHT * alone


@torch.no_grad()
def report(scorer: Scorer, groups: Sequence[CandidateGroup]) -> Report:
    """Let the scorer choose among the candidates of every group."""
    scorer.eval()
    found = [_odds(scorer, groups[n : n + BATCH]) for n in range(0, len(groups), BATCH)]
    odds, right = torch.cat([o for o, _ in found]), torch.cat([r for _, r in found])
    chosen = right.gather(1, odds.argmax(1, keepdim=True))
    brier = (odds.sigmoid() - right.to(odds)).square().mean()
    first, taken, some = (float(s.double().mean()) for s in (right[:, 0], chosen, right.any(1)))
    return Report(len(groups), first, taken, some, float(brier))


def _odds(
    scorer: Scorer,
    groups: Sequence[CandidateGroup],
    diffusion: Diffusion | None = None,
    noise: torch.Generator | None = None,
    *,
    bf16: bool = False,
) -> tuple[Float[Tensor, "groups candidates"], Bool[Tensor, "groups candidates"]]:
    """Return the log-odds of all candidates, noised if there is a process, and the truth."""
    crystals = Crystals.concat([group.crystals for group in groups])
    if diffusion is not None:
        atoms = torch.randn(crystals.frac_coords.shape, generator=noise)
        cells = torch.randn((len(crystals), 6), generator=noise)
        t = torch.full_like(crystals.n_atoms, scorer.level)
        crystals, _ = diffusion.noise(crystals, t, atoms, cells)
    odds = scorer(crystals, "bf16" if bf16 else "fp32").float()
    return odds.view(len(groups), -1), torch.stack([group.right for group in groups])
