"""How a judge learns: which of a composition's candidates is right, and how sure one can be."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from crystorus.crystal_model import CrystalModel
from crystorus.diffusion.algorithms import Diffusion, add_noise
from crystorus.geometry import Crystals
from crystorus.judging.candidates import Group
from crystorus.judging.errors import JudgingError
from crystorus.networks.denoiser import FieldDenoiser
from crystorus.networks.fieldnet import FieldNet
from crystorus.networks.judge import Judge

LEVEL = 0.1
"""Share of T that the network is told of, and that crystals are noised to while it learns."""
BY_ITSELF = 0.3
"""Weight of the cross-entropy of every candidate by itself beside that within its group."""
BATCH = 16
"""Groups per step."""
WARM_UP = 50
"""Steps over which the learning rate rises."""


@dataclass(frozen=True)
class Lessons:
    """How long and how fast a judge learns."""

    epochs: int = 4
    """Passes over the groups."""
    learning_rate: float = 5e-4
    """Of the network; it falls to nothing by half a cosine."""
    head_learning_rate: float = 1e-3
    """Of what is new."""
    weight_decay: float = 0.01
    """Of AdamW."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    """Decides the order of the groups and the head's first weights."""
    bf16: bool = True
    """Whether products inside the network's blocks are in bf16."""


@dataclass(frozen=True)
class Report:
    """What a choice among the candidates of held-out groups finds.

    Attributes:
        groups: How many there are.
        first: Share whose first candidate is right.
        chosen: Share whose candidate with the most confidence is right.
        any: Share with a right candidate.
        brier: Mean square of confidence minus outcome over all candidates.
    """

    groups: int
    first: float
    chosen: float
    any: float
    brier: float


def train_judge(
    model: CrystalModel,
    groups: Sequence[Group],
    lessons: Lessons,
    *,
    held_out: Sequence[Group] = (),
    on_step: Callable[[int, int], None] = lambda step, steps: None,
    on_epoch: Callable[[int, float, Report | None], None] = lambda epoch, loss, report: None,
) -> Judge:
    """Train a judge of a model's crystals; it begins as the model's own network.

    Within a group with right and wrong candidates the loss is -log of the share that a softmax
    gives to the right ones; every candidate by itself adds its cross-entropy. In every pass the
    crystals are noised anew, a little, so that there is less to learn by heart.

    Args:
        model: The checkpoint that made the candidates.
        groups: What to learn from.
        lessons: How.
        held_out: Groups that are only looked at, after every pass.
        on_step: Called with (steps done, steps of all).
        on_epoch: Called with pass, mean loss and what the held-out groups say.

    Raises:
        JudgingError: If the model is of another preset, or there is nothing to tell apart.
    """
    judge = _untrained(model, groups, lessons)
    optimizer = torch.optim.AdamW(
        [{"params": judge.network.parameters()}, {"params": judge.head.parameters()}],
        weight_decay=lessons.weight_decay,
    )
    sizes = np.array([int(group.crystals.n_atoms[0]) for group in groups])
    generator = np.random.default_rng(lessons.seed)
    noise = torch.Generator().manual_seed(lessons.seed)
    steps = lessons.epochs * -(-len(groups) // BATCH)
    step = 0
    for epoch in range(1, lessons.epochs + 1):
        judge.train()
        losses = []
        for chosen in _batches(sizes, generator):
            _set_rates(optimizer, lessons, step, steps)
            odds, right = _odds(judge, [groups[n] for n in chosen], model.diffusion, noise)
            loss = judging_loss(odds, right)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(judge.parameters(), lessons.clip_norm)
            optimizer.step()
            losses.append(float(loss.detach()))
            step += 1
            on_step(step, steps)
        on_epoch(epoch, float(np.mean(losses)), report(judge, held_out) if held_out else None)
    judge.network.bf16 = False
    return judge.eval()


def network_of(model: CrystalModel) -> FieldNet:
    """Return the network that a judge of the model's crystals begins as.

    Raises:
        JudgingError: If the model is of another preset, which has none.
    """
    if not isinstance(model.denoiser, FieldDenoiser):
        raise JudgingError(
            f"a judge is trained from the default network, this checkpoint's is "
            f"{model.config.preset}: give a checkpoint of the default preset"
        )
    return model.denoiser.network


def _untrained(model: CrystalModel, groups: Sequence[Group], lessons: Lessons) -> Judge:
    """Return a judge that begins as the model's network, if there is anything to learn."""
    network = network_of(model)
    if not any(bool(group.right.any() and not group.right.all()) for group in groups):
        raise JudgingError(
            f"of {len(groups)} compositions none has both right and wrong candidates: ask for more "
            "--compositions or --candidates, or train the checkpoint further"
        )
    torch.manual_seed(lessons.seed)
    judge = Judge(copy.deepcopy(network), level=round(LEVEL * model.diffusion.steps))
    judge.network.bf16 = lessons.bf16
    return judge


def _set_rates(optimizer: torch.optim.Optimizer, lessons: Lessons, step: int, steps: int) -> None:
    """Raise the learning rates over the first steps, and let them fall by half a cosine."""
    factor = min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
    network, head = optimizer.param_groups
    network["lr"] = lessons.learning_rate * factor
    head["lr"] = lessons.head_learning_rate * factor


def judging_loss(
    odds: Float[Tensor, "groups candidates"], right: Bool[Tensor, "groups candidates"]
) -> Float[Tensor, ""]:
    """Return the loss of a batch of groups.

    Args:
        odds: Log-odds that each candidate is right.
        right: Which are.
    """
    mixed = right.any(1) & ~right.all(1)
    share = odds.log_softmax(1).masked_fill(~right, -torch.inf)[mixed].logsumexp(1)
    alone = nn.functional.binary_cross_entropy_with_logits(odds, right.to(odds))
    return -share.sum() / len(odds) + BY_ITSELF * alone


@torch.no_grad()
def report(judge: Judge, groups: Sequence[Group]) -> Report:
    """Let the judge choose among the candidates of every group."""
    judge.eval()
    found = [_odds(judge, groups[n : n + BATCH]) for n in range(0, len(groups), BATCH)]
    odds, right = torch.cat([o for o, _ in found]), torch.cat([r for _, r in found])
    chosen = right.gather(1, odds.argmax(1, keepdim=True))
    brier = (odds.sigmoid() - right.to(odds)).square().mean()
    first, taken, some = (float(s.double().mean()) for s in (right[:, 0], chosen, right.any(1)))
    return Report(len(groups), first, taken, some, float(brier))


def _odds(
    judge: Judge,
    groups: Sequence[Group],
    diffusion: Diffusion | None = None,
    noise: torch.Generator | None = None,
) -> tuple[Float[Tensor, "groups candidates"], Bool[Tensor, "groups candidates"]]:
    """Return what the judge says of all candidates, noised if there is a process, and the truth."""
    crystals = Crystals.concat([group.crystals for group in groups])
    if diffusion is not None:
        atoms = torch.randn(crystals.frac_coords.shape, generator=noise)
        cells = torch.randn((len(crystals), 6), generator=noise)
        t = torch.full_like(crystals.n_atoms, judge.level)
        crystals, _ = add_noise(diffusion, crystals, t, atoms, cells)
    odds = judge(crystals).float()
    return odds.view(len(groups), -1), torch.stack([group.right for group in groups])


def _batches(sizes: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Return the groups in batches of similar size, in random order."""
    order = np.argsort(sizes + generator.uniform(0, 1.5, len(sizes)), kind="stable")
    batches = [order[n : n + BATCH] for n in range(0, len(order), BATCH)]
    return [batches[n] for n in generator.permutation(len(batches))]
