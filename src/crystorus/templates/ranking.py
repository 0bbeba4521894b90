"""How much each template counts, by small networks that see elements and sites together.

A cost of substitution knows how well one element stands in for another, whatever else is in the
crystal. The network compares the elements on each site within their compositions, and the wanted
elements with the distances that the template has for them, also in units of the room that these
elements usually take. It adds to the logarithm of the weight that the costs give, and says how
likely it is that none of the templates is right. `tools/train_template_ranking.py` fits it to
MP-20 train, every crystal left out in turn; what it has learned is about elements and distances, so
it serves any library. Fitted from other first weights it errs elsewhere, so the mean of several is
used, brought to the confidence that it deserves on crystals which none of them has seen.
"""

import functools
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from crystal_fidelity.structures import MAX_ATOMIC_NUMBER
from crystorus.data.compositions import Composition
from crystorus.networks.embedding import element_descriptors
from crystorus.templates.fitting import Fits, slots_of
from crystorus.templates.library import TemplateLibrary
from crystorus.templates.surroundings import NEIGHBOURS

FEATURES = 9
_ELEMENT, _SLOT, _JOINED, _HIDDEN, _TOGETHER = 32, 48, 48, 64, 16
_SCALE = 3.0  # of what the network adds to the logarithm of a weight
KERNEL_WIDTH = 0.023
"""Difference of surroundings over which two templates cease to add to each other's prototype."""
OWN_WEIGHT = 0.08
"""Fraction of its own weight that a template gets a second time."""
_WIDER = 0.06  # the same as KERNEL_WIDTH, for a wider look
_PHASE = 0.05  # difference from a known phase of the very composition
_MASKED = -1e4
_CLOSEST = 0.3  # distance over the room of two atoms, below which repulsion grows no more


class Shortlist(NamedTuple):
    """B compositions and up to M templates of each, m elements in all of them.

    Attributes:
        wanted: Elements of the composition, in the order of `slots_of`, [B, m].
        counts: Atoms of each in the cell, [B, m].
        old: Element of the template where each of them goes, [B, M, m].
        distances: Surroundings of the templates, [B, M, m, m, NEIGHBOURS].
        features: Of each template, as `shortlist` gives them, [B, M, FEATURES].
        mask: Which of the M there are, [B, M].
    """

    wanted: Int[Tensor, "B m"]
    counts: Float[Tensor, "B m"]
    old: Int[Tensor, "B M m"]
    distances: Float[Tensor, "B M m m neighbours"]
    features: Float[Tensor, "B M features"]
    mask: Tensor


class TemplateRanking(nn.Module):
    """Gives each template of a shortlist its weight.

    Args:
        dropout: Fraction of features dropped in training.
    """

    table: Tensor
    log_volumes: Tensor

    def __init__(self, dropout: float = 0.08) -> None:
        super().__init__()
        table = element_descriptors().float()
        self.register_buffer("table", table, persistent=False)
        # ln Å3 per atom that an element contributes to a crystal's, linear in atomic fractions.
        self.register_buffer("log_volumes", torch.zeros(MAX_ATOMIC_NUMBER + 1))
        self.free = nn.Embedding(MAX_ATOMIC_NUMBER + 1, _ELEMENT)
        nn.init.normal_(self.free.weight, std=0.1)
        self.known = nn.Linear(table.shape[1], _ELEMENT)
        self.dropout = nn.Dropout(dropout)
        self.context = nn.Sequential(
            nn.Linear(_ELEMENT + 1, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, _SLOT)
        )
        self.slot = nn.Sequential(
            nn.Linear(_ELEMENT + 2 + _SLOT, 2 * _SLOT),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(2 * _SLOT, _SLOT),
        )
        self.distance = nn.Linear(3 * NEIGHBOURS, _SLOT)
        self.here = nn.Linear(_SLOT, _SLOT, bias=False)
        self.there = nn.Linear(_SLOT, _SLOT, bias=False)
        self.site = nn.Sequential(nn.SiLU(), nn.Linear(_SLOT, _SLOT), nn.SiLU())
        self.substitution = nn.Sequential(
            nn.Linear(5 * _SLOT, _HIDDEN),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(_HIDDEN, _JOINED),
        )
        self.template = nn.Sequential(
            nn.Linear(2 * _JOINED + FEATURES, _HIDDEN),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(_HIDDEN, 1),
        )
        self.together = nn.Linear(2 * _JOINED, _TOGETHER)
        self.prototype = nn.Sequential(nn.Linear(7 + _TOGETHER, 32), nn.SiLU(), nn.Linear(32, 1))
        seen, none = nn.Linear(7, 16), nn.Linear(16, 1)
        self.none = nn.Sequential(seen, nn.SiLU(), none)
        # At first, what the network adds is nothing.
        for added in (*self.template[-1].parameters(), *self.prototype[-1].parameters()):
            nn.init.zeros_(added)
        nn.init.constant_(none.bias, -2.5)  # one in thirteen
        self.same = nn.Parameter(torch.tensor(-2.0))
        self.phase = nn.Parameter(torch.tensor(-1.6))

    def forward(self, several: Shortlist) -> Float[Tensor, "B M"]:
        """Return how likely each template is the right one; what is missing from 1 is none of them.

        A template of a prototype that many others have counts more: its own weight is multiplied
        with the sum over those like it.

        Args:
            several: Templates of B compositions, at most M each.
        """
        mask, features = several.mask, several.features
        joined = self._substitutions(several)
        own = self._own_weights(several, joined)
        apart = _squared_differences(several.distances)
        itself = OWN_WEIGHT * torch.eye(mask.shape[1]).to(apart)
        alike = (torch.exp(-0.5 * apart / KERNEL_WIDTH**2) + itself) * mask[:, None]
        total = _times(alike, own)
        shared = torch.log(total + 1e-7)
        wider = torch.exp(-0.5 * apart / _WIDER**2) * mask[:, None]
        same = ((features[..., 3] > 0) & mask)[:, None]
        # The least squared difference from a known phase of the very composition, 1 without one.
        nearest = torch.where(same, apart, torch.ones_like(apart)).amin(-1).add(1e-8).sqrt()
        phase = torch.exp(-0.5 * (nearest / _PHASE) ** 2)
        of_prototype = torch.stack(
            [
                shared,
                torch.log(_times(wider, own) + 1e-7),
                torch.log(alike.sum(-1).clamp_min(1e-2)) / 2,
                phase,
                features[..., 8],
                nearest.clamp_max(0.5) * 4,
                phase * shared,
            ],
            -1,
        )
        # What the templates of a prototype have in common: the weighted mean over those alike.
        common = alike @ (self.together(joined) * own[..., None]) / (total + 1e-6)[..., None]
        of_prototype = torch.cat([of_prototype, torch.tanh(common)], -1)
        shared = shared + self.phase * phase + self.prototype(of_prototype).squeeze(-1)
        logits = (torch.log(own + 1e-9) + shared).masked_fill(~mask, _MASKED)
        weight = torch.softmax(logits, -1)
        return weight * (1 - self._none_of_them(several, weight))[:, None]

    def _none_of_them(
        self, several: Shortlist, weight: Float[Tensor, "B M"]
    ) -> Float[Tensor, " B"]:
        """Return the probability that no template of a shortlist is right."""
        cost = several.features[..., 1].masked_fill(~several.mask, torch.inf).amin(-1)
        seen = [
            weight.amax(-1),
            -(weight * torch.log(weight + 1e-9)).sum(-1),
            cost.clamp_max(4),
            torch.log1p(cost),
            several.features[:, 0, 7],
            several.features[:, 0, 8],
            torch.log(several.mask.sum(-1).float()),
        ]
        return torch.sigmoid(self.none(torch.stack(seen, -1))).squeeze(-1)

    def _substitutions(self, several: Shortlist) -> Float[Tensor, "B M joined"]:
        """Describe what is put where in each template: mean and maximum over its elements."""
        wanted = self._slots(several.wanted, several.counts)
        counts = several.counts[:, None].expand(several.old.shape)
        old = self._slots(several.old, counts)
        new = wanted[:, None].expand(old.shape)
        # Distances over half the sum of the lengths v^⅓ of the two elements, v their usual volume
        # per atom: near 1 for neighbours, and a power of the inverse for how they repel.
        fraction = several.counts / several.counts.sum(-1, keepdim=True)
        volume = self.log_volumes[several.wanted]
        length = torch.exp(volume / 3) / 2
        unit = torch.exp((volume * fraction).sum(-1) / 3)
        scale = unit[:, None, None] / (length[:, :, None] + length[:, None])
        relative = several.distances * scale[:, None, ..., None]
        seen = [several.distances, relative, relative.clamp_min(_CLOSEST) ** -4]
        sites = self.site(
            self.distance(torch.cat(seen, -1))
            + self.here(wanted)[:, None, :, None]
            + self.there(wanted)[:, None, None]
        ).mean(3)
        joined = self.substitution(torch.cat([new, old, new * old, (new - old) ** 2, sites], -1))
        return torch.cat([joined.mean(2), joined.amax(2)], -1)

    def _own_weights(
        self, several: Shortlist, joined: Float[Tensor, "B M joined"]
    ) -> Float[Tensor, "B M"]:
        """Return the weight of each template before it is shared with those like it."""
        features = several.features
        added = _SCALE * self.template(torch.cat([joined, features], -1)).squeeze(-1)
        logits = features[..., 0] + self.same * features[..., 3] + added
        return torch.softmax(logits.masked_fill(~several.mask, _MASKED), -1)

    def _slots(
        self, numbers: Int[Tensor, "*B m"], counts: Float[Tensor, "*B m"]
    ) -> Float[Tensor, "*B m slot"]:
        """Describe each element of a composition together with the others."""
        element = self.dropout(self.free(numbers) + self.known(self.table[numbers]))
        fraction = (counts / counts.sum(-1, keepdim=True)).unsqueeze(-1)
        context = self.context(torch.cat([element, fraction], -1)) * fraction
        context = context.sum(-2, keepdim=True).expand(*element.shape[:-1], -1)
        return self.slot(torch.cat([element, fraction, torch.log(counts)[..., None], context], -1))


class AveragedRanking(nn.Module):
    """The mean of what several networks say, which are not trained any more.

    Networks are surer of templates than they should be for crystals that they have not seen. Two
    numbers, fitted to such crystals, make up for it: see `with_confidence`.

    Args:
        members: Fitted to the same crystals from different first weights.
    """

    sharpness: Tensor
    none_factor: Tensor

    def __init__(self, members: Sequence[TemplateRanking]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("sharpness", torch.ones(()))
        self.register_buffer("none_factor", torch.ones(()))

    @property
    def log_volumes(self) -> Float[Tensor, " elements"]:
        """Volume per atom of each element, ln Å³, by which `shortlist` expects volumes."""
        return self.get_buffer("members.0.log_volumes")

    def forward(self, several: Shortlist) -> Float[Tensor, "B M"]:
        """Return how likely each template is the right one; what is missing from 1 is none of them.

        Args:
            several: Templates of B compositions, at most M each.
        """

        def weigh(*state_of_one: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(self.members[0], state_of_one, (several,))

        mean = torch.func.vmap(weigh)(*self._state).mean(0)
        return with_confidence(mean, several.mask, self.sharpness, self.none_factor)

    @functools.cached_property
    def _state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights of all members side by side: with tensors so small it is calls that take time."""
        return torch.func.stack_module_state(list(self.members))


def with_confidence(
    mean: Float[Tensor, "*B M"],
    mask: Tensor,
    sharpness: Tensor | float,
    none_factor: Tensor | float,
) -> Float[Tensor, "*B M"]:
    """Return w_i ∝ w̄_i^sharpness for templates, w_0 ∝ w̄_0^sharpness · none_factor for none of them.

    Args:
        mean: w̄, which leaves w̄_0 to 1, [*B, M].
        mask: Which of the M there are, [*B, M].
        sharpness: 1 changes nothing, less is less sure of single templates, [].
        none_factor: 1 changes nothing, more is surer that none is right, [].
    """
    none = (1 - mean.sum(-1, keepdim=True)).clamp_min(1e-9) ** sharpness * none_factor
    weight = torch.where(mask, mean.clamp_min(1e-12) ** sharpness, 0)
    return weight / (weight.sum(-1, keepdim=True) + none)


def _times(matrix: Float[Tensor, "B M M"], vector: Float[Tensor, "B M"]) -> Float[Tensor, "B M"]:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _squared_differences(distances: Float[Tensor, "B M *rest"]) -> Float[Tensor, "B M M"]:
    rows = distances.flatten(2)
    squares = (rows**2).sum(-1)
    apart = squares[:, :, None] + squares[:, None] - 2 * rows @ rows.transpose(1, 2)
    return (apart / rows.shape[-1]).clamp_min(0)


def shortlist(
    library: TemplateLibrary,
    composition: Composition,
    fits: Fits,
    chosen: np.ndarray,
    log_weight: np.ndarray,
    log_volumes: np.ndarray,
) -> Shortlist:
    """Describe templates for the network.

    Args:
        library: Where they are from.
        composition: What is wanted.
        fits: All the templates considered.
        chosen: Which of them to describe, [M].
        log_weight: ln of the weight that its cost gives each of `fits`, [N].
        log_volumes: ln Å3 per atom of each element, [119].

    Returns:
        One composition, without padding. The features are the logarithm of the weight, the cost and
        how much dearer than the cheapest it is, whether no element is substituted, whether it is a
        derivative of another pattern, the change of the volume expected and the template's own
        deviation from what its elements let expect (ln Å3 per atom), the number of atoms and the
        number of known phases of the very composition.
    """
    wanted, counts = slots_of(composition)
    fraction = counts / counts.sum()
    arrays = library.crystals.arrays
    old, deviation = [], []
    for n in chosen.tolist():
        was, index = library.atomic_numbers(int(fits.templates[n])), int(fits.templates[n])
        old.append(was[(fits.numbers[n] == wanted[:, None]).argmax(1)])
        volume = abs(np.linalg.det(arrays["lattice"][index])) / len(was)
        deviation.append(np.log(volume) - log_volumes[was].mean())
    elements = np.stack(old)
    cost, same, derived = fits.cost[chosen], fits.same[chosen], fits.derived[chosen]
    features = np.stack(
        [
            log_weight[chosen],
            cost,
            cost - fits.cost.min(),
            same,
            derived,
            log_volumes[wanted] @ fraction - log_volumes[elements] @ fraction,
            np.where(derived, 0, deviation),
            np.full(len(chosen), counts.sum() / 10),
            np.full(len(chosen), fits.same.sum() / 2),
        ],
        1,
    )
    return Shortlist(
        torch.from_numpy(wanted)[None],
        torch.from_numpy(counts.astype(np.float32))[None],
        torch.from_numpy(elements)[None],
        torch.from_numpy(fits.distances[chosen].astype(np.float32))[None],
        torch.from_numpy(features.astype(np.float32))[None],
        torch.ones(1, len(chosen), dtype=torch.bool),
    )


@functools.cache
def shipped_ranking() -> AveragedRanking:
    """Return the networks with the weights that ship with the package."""
    place = resources.files("crystorus.templates") / "ranking.safetensors"
    with resources.as_file(place) as path:
        weights = load_file(path)
    count = sum(name.endswith(".log_volumes") for name in weights)
    ranking = AveragedRanking([TemplateRanking() for _ in range(count)])
    ranking.load_state_dict(weights)
    # Potentials such as MACE make float64 the default of the whole process.
    return ranking.float().eval()
