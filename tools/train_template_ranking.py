"""Fit the networks that rank templates, and put their weights into the package.

    crystorus templates build train.store train.templates
    python tools/train_template_ranking.py train.templates --workers 2

Every crystal of the library is left out in turn, with the pairs that it gave to the counts of
substitutions, and its composition looked up among the others: once among all of them, and three
times among fewer, drawn at random, so that the networks also learn to choose among poorer lists. A
candidate counts as right with the probability that a crystal of such surroundings matches
(`match_probability`); the network learns to give the right ones weight, and the rest to none of
them. 2 000 crystals are never learned from: they set the confidence of the mean of the networks,
and a line after every network says what the first template is worth on them, by expected matches,
before and after. Eight minutes of one core, and nine for every network.
"""

import argparse
import multiprocessing
import pickle
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save

from crystal_fidelity.files import atomic_path, check_writable
from crystorus.data.compositions import Composition
from crystorus.data.store import check_target
from crystorus.diffusion.cell_prior import fit_cell_statistics
from crystorus.templates.fitting import Fits
from crystorus.templates.library import TemplateLibrary, open_library
from crystorus.templates.ranking import (
    AveragedRanking,
    Shortlist,
    TemplateRanking,
    shortlist,
    with_confidence,
)
from crystorus.templates.retrieval import (
    considered_fits,
    cost_weights,
    prototype_weights,
    shortlisted,
)
from crystorus.templates.substitution import (
    LARGEST_BUCKET,
    SAME_PROTOTYPE,
    SubstitutionCounts,
    count_substitutions,
)
from crystorus.templates.surroundings import difference, differences, match_probability

KEPT = 2000
"""Crystals kept aside."""
SHIPPED = Path("src/crystorus/templates/ranking.safetensors")
THINNED, LEAST_DROPPED, MOST_DROPPED = 3, 0.15, 0.75
"""Poorer lists of each crystal, and the fraction of templates that is dropped at random."""
THINNED_FRACTION, WHOLE_EPOCHS = 0.5, 2
"""How often a poorer list is learned from, and the last passes, in which it is not."""
_FLOOR = 2e-3  # of the probability in the loss
_shared: dict[str, Callable] = {}
"""What forked processes compute: its data are in their memory already."""
_RIDGE = 0.3


class Lesson(NamedTuple):
    """A crystal left out: its templates, the chance of each to match, and the first by weight."""

    templates: Shortlist
    right: torch.Tensor
    first: int


class LeftOut:
    """Gives the library as it would be without the pairs that one of its crystals counts in."""

    def __init__(self, library: TemplateLibrary) -> None:
        self.library = library
        # A library too small to count has the counts of MP-20, of which its crystals are no part.
        self.counted = count_substitutions(library.slots).pairs == library.substitution.pairs
        self.buckets: dict[tuple, list[tuple[int, np.ndarray]]] = defaultdict(list)
        self.places: list[list[tuple[tuple, int]]] = []
        for crystal in library.slots:
            self.places.append([])
            slots = list(zip(crystal.counts.tolist(), crystal.elements.tolist(), strict=True))
            for slot, (count, element) in enumerate(slots):
                order = [slot, *(n for n in range(len(slots)) if n != slot)]
                key = (count, *(slots[n] for n in order[1:]))
                self.places[-1].append((key, len(self.buckets[key])))
                self.buckets[key].append((element, crystal.distances[np.ix_(order, order)]))

    def __call__(self, index: int) -> TemplateLibrary:
        """Return the library without the pairs of a crystal; the crystal itself is still there."""
        if not self.counted:
            return self.library
        counts = self.library.substitution
        same, other = counts.same.copy(), counts.other.copy()
        for key, place in self.places[index]:
            first = place // LARGEST_BUCKET * LARGEST_BUCKET
            members = self.buckets[key][first : first + LARGEST_BUCKET]
            element, distances = self.buckets[key][place]
            partners = np.array([z for z, _ in members])
            alike = difference(np.stack([d for _, d in members]), distances) < SAME_PROTOTYPE
            for table, chosen in ((same, alike), (other, ~alike)):
                one_by_one = partners[chosen & (partners != element)]
                np.add.at(table, (one_by_one, element), -1)
                np.add.at(table, (element, one_by_one), -1)
        return self.library.with_substitution(SubstitutionCounts(same, other))


def lesson(
    library: TemplateLibrary, index: int, composition: Composition, fits: Fits, volumes: np.ndarray
) -> Lesson:
    """Describe the templates of a crystal that is left out."""
    apart = differences(fits.distances)
    weight = prototype_weights(fits.cost, apart, fits.same)
    some = shortlisted(fits, apart, np.argsort(-weight, kind="stable"))
    described = shortlist(
        library, composition, fits, some, np.log(cost_weights(fits.cost, fits.cost.min())), volumes
    )
    truth = library.slots[index].distances
    right = match_probability(difference(fits.distances[some], truth))
    described = described._replace(distances=described.distances.half())  # there are many
    return Lesson(described, torch.tensor(right, dtype=torch.float32), int(weight[some].argmax()))


def lessons(left_out: LeftOut, volumes: np.ndarray, index: int) -> list[Lesson]:
    """Look up the composition of a crystal among the others, and among fewer of them."""
    library = left_out(index)
    composition = Composition.of(library.atomic_numbers(index).tolist())
    fits = considered_fits(library, composition, exclude=index)
    if fits is None or len(fits) < 2:
        return []
    found = [lesson(library, index, composition, fits, volumes)]
    drawn = np.random.default_rng([3, index])
    for _ in range(THINNED):
        chance = drawn.random(len(fits))
        left = np.flatnonzero(chance >= drawn.uniform(LEAST_DROPPED, MOST_DROPPED))
        if len(left) >= 2:
            found.append(lesson(library, index, composition, fits.select(left), volumes))
    return found


def batches(lessons: list[Lesson], *, shuffle: bool) -> Iterator[tuple[Shortlist, torch.Tensor]]:
    """Yield lessons of as many elements together, padded to as many templates."""
    by_size: dict[int, list[Lesson]] = defaultdict(list)
    for one in lessons:
        by_size[one.templates.wanted.shape[1]].append(one)
    parts = []
    for m, several in by_size.items():
        size = max(8, 288 // max(m * m, 4))
        order = np.random.permutation(len(several)) if shuffle else np.arange(len(several))  # noqa: NPY002
        parts += [[several[n] for n in order[k : k + size]] for k in range(0, len(order), size)]
    if shuffle:
        np.random.shuffle(parts)  # noqa: NPY002
    for part in parts:
        columns = []
        for values in zip(*(one.templates for one in part), strict=True):
            rows = [value[0] for value in values]
            columns.append(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True))
        right = torch.nn.utils.rnn.pad_sequence([one.right for one in part], batch_first=True)
        templates = Shortlist(*columns)
        yield templates._replace(distances=templates.distances.float()), right


def loss_of(weight: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return -ln of the weight on what is right, none of the templates where none is, [B].

    Args:
        weight: Of each template, [B, M].
        right: Chance of each to match, 0 for padding, [B, M].
    """
    found = (weight * right).sum(-1) + (1 - weight.sum(-1)) * (1 - right.amax(-1))
    return -torch.log(found + _FLOOR)


def fit(
    ranking: TemplateRanking, learned_from: list[list[Lesson]], epochs: int, rate: float
) -> None:
    """Train by Adam, the rate falling to zero by a cosine."""
    matrices = [p for p in ranking.parameters() if p.dim() > 1]
    others = [p for p in ranking.parameters() if p.dim() <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}], rate
    )
    total = epochs * sum(1 for _ in batches([one[0] for one in learned_from], shuffle=False))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda n: min(1, (n + 1) / 50) * 0.5 * (1 + np.cos(np.pi * n / total))
    )
    for epoch in range(epochs):
        thinned = THINNED_FRACTION if epoch < epochs - WHOLE_EPOCHS else 0.0
        chosen = [
            one[np.random.randint(1, len(one))]  # noqa: NPY002
            if len(one) > 1 and np.random.rand() < thinned  # noqa: NPY002
            else one[0]
            for one in learned_from
        ]
        losses = []
        for several, right in batches(chosen, shuffle=True):
            loss = loss_of(ranking(several), right).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(ranking.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
        print(
            f"seed {torch.initial_seed()}, epoch {epoch + 1}: loss {np.mean(losses):.4f}",
            flush=True,
        )


def fitted(
    learned_from: list[list[Lesson]], volumes: np.ndarray, epochs: int, rate: float, seed: int
) -> TemplateRanking:
    """Return a network trained from the first weights and in the order of a seed."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    ranking = TemplateRanking()
    ranking.log_volumes.copy_(torch.from_numpy(volumes))
    fit(ranking.train(), learned_from, epochs, rate)
    return ranking.eval()


@torch.no_grad()
def set_confidence(ranking: AveragedRanking, kept: list[Lesson]) -> None:
    """Set sharpness and none_factor so that the first template matches as often as is said of it.

    That is the cross-entropy of the probability said and the chance that it matches, the least over
    a grid, on crystals kept aside.
    """
    every = (_weighed(ranking, one) for one in kept)
    several = [(torch.from_numpy(weight), alike, right) for weight, alike, right in every]

    def loss(sharpness: float, none_factor: float) -> float:
        found = []
        for weight, alike, right in several:
            sharper = with_confidence(weight, weight >= 0, sharpness, none_factor)  # no padding
            said = alike @ sharper.numpy()
            first = int(said.argmax())
            chance = min(max(said[first], 1e-3), 1 - 1e-3)
            found.append(right[first] * np.log(chance) + (1 - right[first]) * np.log(1 - chance))
        return -float(np.mean(found))

    tried = [(s, f) for s in np.arange(0.3, 1.35, 0.1) for f in np.exp(np.arange(-1, 3.1, 0.25))]
    sharpness, none_factor = min(tried, key=lambda pair: loss(*pair))
    ranking.sharpness.fill_(sharpness)
    ranking.none_factor.fill_(none_factor)
    print(
        f"sharpness {sharpness:.2f}, none_factor {none_factor:.2f}: cross-entropy of the first on "
        f"crystals kept aside {loss(1, 1):.4f} -> {loss(sharpness, none_factor):.4f}",
        flush=True,
    )


@torch.no_grad()
def _weighed(ranking: AveragedRanking, one: Lesson) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weights, the chance of each pair of templates to match, and of each to be right."""
    templates = one.templates._replace(distances=one.templates.distances.float())
    alike = match_probability(differences(templates.distances[0].double().numpy()))
    return ranking(templates)[0].double().numpy(), alike, one.right.double().numpy()


def expected_matches(
    ranking: AveragedRanking, kept: list[Lesson]
) -> tuple[float, float, float, float]:
    """Return the match rate of the first template before and after, the gain's error, the forecast.

    The last is the match rate that the networks expect of themselves.
    """
    before, after, said = [], [], []
    for one in kept:
        weight, alike, right = _weighed(ranking, one)
        gain = alike @ weight
        first = int(gain.argmax())
        before.append(right[one.first])
        after.append(right[first])
        said.append(gain[first])
    change = np.array(after) - np.array(before)
    error = float(change.std() / len(change) ** 0.5)
    return float(np.mean(before)), float(np.mean(after)), error, float(np.mean(said))


def _look_up(index: int) -> bytes:
    # Plain bytes: of tensors a pool hands over open files, of which there may be a thousand.
    return pickle.dumps(_shared["look_up"](index))


def _fit(seed: int) -> bytes:
    return pickle.dumps(_shared["fit"](seed))


def main() -> None:
    """Fit and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", type=Path)
    parser.add_argument("--crystals", type=int, help="left out, the first of them kept aside")
    parser.add_argument("--kept", type=int, default=KEPT)
    parser.add_argument("--networks", type=int, default=4, help="whose mean ranks")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0, help="of the first; the next is one more")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    a = parser.parse_args()
    if min(a.kept, a.networks, a.epochs, a.workers) < 1:
        parser.error("--kept, --networks, --epochs and --workers are 1 or more")
    if not a.out.parent.is_dir():
        parser.error(f"--out {a.out}: {a.out.parent} is no folder that can be written to")
    check_writable(a.out.parent)
    check_target(a.out, [a.library])
    torch.set_num_threads(1)
    library = open_library(a.library)
    order = np.random.default_rng(7).permutation(len(library))[: a.crystals].tolist()
    if len(order) <= a.kept:
        parser.error(
            f"of {len(order)} crystals --kept {a.kept} leaves none to learn from: keep fewer, or "
            "take more (--crystals, or a larger library)"
        )
    crystals = library.crystals.select(range(len(library)), dtype=torch.float64)
    # ln Å3 per atom of each element, [119].
    volumes = fit_cell_statistics(crystals, ridge=_RIDGE).log_volume.double().numpy()
    # Forked processes share what is in memory already.
    context = multiprocessing.get_context("fork")
    _shared["look_up"] = partial(lessons, LeftOut(library), volumes)
    with context.Pool(a.workers) as pool:
        found = [pickle.loads(one) for one in pool.imap(_look_up, order, chunksize=100)]  # noqa: S301
    kept = [several[0] for several in found[: a.kept] if several]
    learned_from = [several for several in found[a.kept :] if several]
    if not kept or not learned_from:
        parser.error(
            f"{len(kept)} of the crystals kept aside and {len(learned_from)} of the others have "
            "two templates to choose from: take a larger library"
        )
    _shared["fit"] = partial(fitted, learned_from, volumes, a.epochs, a.rate)
    members: list[TemplateRanking] = []
    with context.Pool(a.workers) as pool:
        for ranking in pool.imap(_fit, range(a.seed, a.seed + a.networks)):
            members.append(pickle.loads(ranking))  # noqa: S301
            mean = AveragedRanking(members).eval()
            set_confidence(mean, kept)
            before, after, error, said = expected_matches(mean, kept)
            print(
                f"{len(members)} networks, {len(kept)} kept aside: {100 * before:.2f} -> "
                f"{100 * after:.2f} ± {100 * error:.2f} %, {100 * said:.2f} % by their own word",
                flush=True,
            )
            with atomic_path(a.out) as place:
                place.write_bytes(save({k: v.contiguous() for k, v in mean.state_dict().items()}))


if __name__ == "__main__":
    main()
