"""Fit the networks that rank templates, and put their weights into the package.

    crystorus templates build train.store train.templates
    python tools/train_template_ranking.py train.templates

Every crystal of the library is left out in turn, with the pairs that it gave to the counts of
substitutions, and its composition looked up among the others. A candidate counts as right with the
probability that a crystal of such surroundings matches (`match_probability`); the network learns
to give the right ones weight. 2 000 crystals are never learned from: a line after every network
says what the first template is worth on them, by expected matches, before and after, with the mean
of the networks so far. One core, six minutes, and three for every network.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from crystorus.data.compositions import Composition
from crystorus.diffusion.cell_prior import fit_cell_statistics
from crystorus.templates.library import TemplateLibrary, open_library
from crystorus.templates.ranking import AveragedRanking, Shortlist, TemplateRanking, shortlist
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
)
from crystorus.templates.surroundings import difference, differences, match_probability

KEPT = 2000
"""Crystals kept aside."""
SHIPPED = Path("src/crystorus/templates/ranking.safetensors")
_FLOOR = 0.04  # of the probability in the loss: where no candidate is right, nothing is learned
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
        return replace(self.library, substitution=SubstitutionCounts(same, other))


def lesson(library: TemplateLibrary, index: int, volumes: np.ndarray) -> Lesson | None:
    """Look up the composition of a crystal that is left out; None without two templates."""
    composition = Composition.of(library.atomic_numbers(index).tolist())
    fits = considered_fits(library, composition, exclude=index)
    if fits is None or len(fits) < 2:
        return None
    apart = differences(fits.distances)
    weight = prototype_weights(fits.cost, apart, fits.same)
    some = shortlisted(fits, apart, np.argsort(-weight, kind="stable"))
    described = shortlist(
        library, composition, fits, some, np.log(cost_weights(fits.cost, fits.cost.min())), volumes
    )
    truth = library.slots[index].distances
    right = match_probability(difference(fits.distances[some], truth))
    return Lesson(described, torch.tensor(right, dtype=torch.float32), int(weight[some].argmax()))


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
        yield Shortlist(*columns), right


def fit(ranking: TemplateRanking, lessons: list[Lesson], epochs: int, rate: float) -> None:
    """Train by Adam, the rate falling to zero by a cosine."""
    matrices = [p for p in ranking.parameters() if p.dim() > 1]
    others = [p for p in ranking.parameters() if p.dim() <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}], rate
    )
    total = epochs * sum(1 for _ in batches(lessons, shuffle=False))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda n: min(1, (n + 1) / 50) * 0.5 * (1 + np.cos(np.pi * n / total))
    )
    for epoch in range(epochs):
        losses = []
        for several, right in batches(lessons, shuffle=True):
            found = (ranking(several) * right).sum(-1)
            loss = -torch.log(_FLOOR + (1 - _FLOOR) * found).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(ranking.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}", flush=True)


@torch.no_grad()
def expected_matches(ranking: AveragedRanking, lessons: list[Lesson]) -> tuple[float, float, float]:
    """Return the match rates of the first template, before and after, and the gain's error."""
    before, after = [], []
    for one in lessons:
        distances = one.templates.distances[0].double().numpy()
        alike = match_probability(differences(distances))
        first = int((alike @ ranking(one.templates)[0].double().numpy()).argmax())
        before.append(float(one.right[one.first]))
        after.append(float(one.right[first]))
    gain = np.array(after) - np.array(before)
    return float(np.mean(before)), float(np.mean(after)), float(gain.std() / len(gain) ** 0.5)


def main() -> None:
    """Fit and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", type=Path)
    parser.add_argument("--crystals", type=int, help="left out, the first of them kept aside")
    parser.add_argument("--kept", type=int, default=KEPT)
    parser.add_argument("--networks", type=int, default=5, help="whose mean ranks")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0, help="of the first; the next is one more")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    a = parser.parse_args()
    library = open_library(a.library)
    crystals = library.crystals.select(range(len(library)), dtype=torch.float64)
    # ln Å3 per atom of each element, [119].
    volumes = fit_cell_statistics(crystals, ridge=_RIDGE).log_volume.double().numpy()
    left_out = LeftOut(library)
    order = np.random.default_rng(7).permutation(len(library))[: a.crystals].tolist()
    found = [lesson(left_out(index), index, volumes) for index in order]
    kept = [one for one in found[: a.kept] if one is not None]
    learned_from = [one for one in found[a.kept :] if one is not None]
    members: list[TemplateRanking] = []
    for seed in range(a.seed, a.seed + a.networks):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        ranking = TemplateRanking()
        ranking.log_volumes.copy_(torch.from_numpy(volumes))
        fit(ranking.train(), learned_from, a.epochs, a.rate)
        members.append(ranking.eval())
        mean = AveragedRanking(members)
        before, after, error = expected_matches(mean, kept)
        print(
            f"{len(members)} networks, {len(kept)} kept aside: {100 * before:.2f} -> "
            f"{100 * after:.2f} ± {100 * error:.2f} %",
            flush=True,
        )
    save_file({name: value.contiguous() for name, value in mean.state_dict().items()}, a.out)


if __name__ == "__main__":
    main()
