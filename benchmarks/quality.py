"""Score a checkpoint on validation compositions: one crystal each, from noise, unfiltered.

    python benchmarks/quality.py --data val.store --library train.store -n 1000 --out scores.json

The crystals are made by `crystorus` and measured by `crystal_fidelity`: validity (0.5 Å, own images
included), density EMD, match rate by both protocols, RMSE and volume error (StructureMatcher stol
0.5, angle 10°, ltol 0.3, all N in the denominator). Beside them random coordinates in the true
cell, and substitution into the nearest training crystal. `--data` and `--library` are stores made
by `crystorus data build`.
"""

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crystal_fidelity.distances import density_emd
from crystal_fidelity.matching import WRONG_VOLUME, MatchResult, match_rate, valid_pairs
from crystal_fidelity.structures import Crystal, Entry
from crystal_fidelity.symmetry import dataset
from crystal_fidelity.validity import structural_validity
from crystal_fidelity.workers import Workers
from crystorus.checkpoint import SHIPPED, load_checkpoint
from crystorus.config import SamplerConfig
from crystorus.crystal_model import CrystalModel
from crystorus.data.compositions import Composition
from crystorus.data.convert import split
from crystorus.data.store import open_store
from crystorus.diffusion.space_groups import Skeleton
from crystorus.geometry import Crystals
from crystorus.sample.options import SampleOptions
from crystorus.sample.requests import Request
from crystorus.sample.sampler import GeneratedCrystals, SamplingPlan, make, sampling_at
from crystorus.sample.start import give_skeletons
from crystorus.templates.skeletons import WeightedSkeleton, skeleton_of, table_of
from crystorus.train.space_groups import SYMPREC

if __package__ in (None, ""):
    from nearest_template import substitute


def inside_itself(request: Request, crystal: Crystal, candidates: int) -> Request:
    """Return a request for a crystal's composition inside its own space group and sites."""
    skeleton = skeleton_of(crystal, dataset(crystal, SYMPREC))
    cell = Composition.of(skeleton.atomic_numbers)  # the primitive one
    orbits = sorted(skeleton.orbits, key=lambda orbit: cell.atomic_numbers.index(orbit[0]))
    given = WeightedSkeleton(Skeleton(skeleton.group, tuple(orbits)), 1.0)
    return replace(request, composition=cell, skeletons=(given,) * candidates)


def generate(
    model: CrystalModel,
    wanted: Crystals,
    sampler: SamplerConfig,
    seed: int,
    batch_atoms: int,
    workers: Workers,
    checkpoint: Path = SHIPPED,
    candidates: int = 1,
    space_group: str = "known",
) -> tuple[Crystals, Tensor, float]:
    """Sample one crystal per composition, in the order given.

    Returns:
        The crystals, their scorer errors, and the seconds taken.
    """
    requests = [
        Request(n, 0, seed * 1_000_003 + n, Composition.of(one.atomic_numbers.tolist()))
        for n, one in enumerate(wanted.split())
    ]
    if space_group == "true":
        requests = [
            inside_itself(one, crystal, candidates)
            for one, crystal in zip(requests, split(wanted), strict=True)
        ]
    elif model.skeletons:
        options = SampleOptions(space_group=space_group)
        requests = give_skeletons(requests, table_of(model.skeletons), options, candidates)
    plan = SamplingPlan(sampler, candidates=candidates, batch_atoms=batch_atoms)
    began = time.perf_counter()
    made = GeneratedCrystals.concat(
        list(make(model, requests, plan, workers=workers, checkpoint=checkpoint))
    )
    return made.crystals, torch.tensor(made.scorer_error), time.perf_counter() - began


def match_figures(
    match: MatchResult, candidates: list[list[Entry]], reference: list[Crystal]
) -> dict:
    """Return match rate, RMSE and volume error by both protocols."""
    result: dict[str, float | None] = {}
    for one in (match, match.restricted(valid_pairs(candidates, reference))):
        matched, errors, end = int(one.matched.sum()), one.volume_errors, f"_{one.protocol}"
        result |= {
            "match_percent" + end: 100 * one.rate,
            "rmse" + end: one.mean_rms if matched else None,
            "volume_error_percent" + end: 100 * float(np.median(errors)) if matched else None,
            "wrong_volume_percent" + end: (
                100 * float((errors > WRONG_VOLUME).mean()) if matched else None
            ),
        }
    return result


def reliability(errors: Tensor, matched: np.ndarray) -> list[dict]:
    """Return how often crystals of a confidence are right, by fifths of the confidence."""
    confidence = (-errors).exp().numpy()
    rows = []
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        chosen = (confidence >= low) & (confidence < low + 0.2 + (low == 0.8))
        rows.append(
            {
                "from": low,
                "n": int(chosen.sum()),
                "confidence": float(confidence[chosen].mean()) if chosen.any() else None,
                "match_percent": 100 * float(matched[chosen].mean()) if chosen.any() else None,
            }
        )
    return rows


def score(
    generated: list[Crystal],
    reference: list[Crystal],
    workers: int,
    baseline: bool,
    errors: Tensor | None = None,
) -> dict:
    """Return the figures of one set, with the reliability of a scorer's confidence if it chose."""
    match = match_rate(generated, reference, baseline=baseline, workers=workers)
    result = {
        "n": len(generated),
        "validity_percent": 100 * structural_validity(generated).rate,
        "density_emd_g_per_cm3": density_emd(generated, reference).value,
        **match_figures(match, [generated], reference),
        "colliding_matches": match.collisions,
    }
    if errors is not None:
        result["reliability"] = reliability(errors, match.matched)
    if match.baseline is not None:
        result["random_coordinates"] = {
            "match_percent": 100 * match.baseline.rate,
            "rmse": match.baseline.mean_rms,
        }
    return result


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--library", type=Path, help="training store, for the substitution row")
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--choice", type=int, default=1, help="seed of the choice of compositions")
    parser.add_argument("--sampler", default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--anti-annealing", type=float, default=None)
    parser.add_argument("--first-fraction", type=float, default=None)
    parser.add_argument("--last-fraction", type=float, default=None)
    parser.add_argument("--temperature", type=float, default=None)
    parser.add_argument("--over-relaxation", type=float, default=None)
    parser.add_argument("--final-refinement-steps", type=int, default=None)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default=None)
    parser.add_argument("--quality", default=None, help="fast, default or best, before these")
    parser.add_argument(
        "--candidates", type=int, default=None, help="instead of as many as the quality says"
    )
    parser.add_argument(
        "--space-group",
        default="known",
        help="as in crystorus sample; true: the space group and sites of each reference itself",
    )
    parser.add_argument("--batch-atoms", type=int, default=1024)
    parser.add_argument("--processes", type=int, default=1, help="that sample")
    parser.add_argument("--workers", type=int, default=2, help="processes that compare")
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    model = load_checkpoint(a.checkpoint)
    named = {"name": a.sampler} | {
        key: getattr(a, key)
        for key in (
            "steps",
            "anti_annealing",
            "first_fraction",
            "last_fraction",
            "temperature",
            "over_relaxation",
            "final_refinement_steps",
            "precision",
        )
    }
    named = {key: value for key, value in named.items() if value is not None}
    usual, candidates = model.config.sampling, 1
    if a.quality or not named:
        usual, candidates = sampling_at(a.quality or "default", model)
    sampler, candidates = replace(usual, **named), a.candidates or candidates
    store = open_store(a.data)
    chosen = np.random.default_rng(a.choice).permutation(len(store))[: a.n]
    wanted = store.select(chosen)
    workers = Workers(a.processes)
    crystals, errors, seconds = generate(
        model,
        wanted,
        sampler,
        a.seed,
        a.batch_atoms,
        workers,
        a.checkpoint,
        candidates,
        a.space_group,
    )
    reference = split(wanted)
    report = {
        "checkpoint": model.digest,
        "scorer": model.scorer_digest if candidates > 1 else "",
        "sampler": vars(sampler),
        "seed": a.seed,
        "candidates": candidates,
        "space_group": a.space_group,
        "seconds_per_crystal": seconds / a.n,
        "processes": a.processes,
        "threads": torch.get_num_threads() if a.processes == 1 else "shared out",
        "machine": platform.machine(),
        "torch": torch.__version__,
        "model": score(
            split(crystals),
            reference,
            a.workers,
            a.baselines,
            errors if candidates > 1 and model.scorer is not None else None,
        ),
    }
    if a.baselines and a.library is not None:
        templates = substitute(wanted, open_store(a.library))
        hits = [n for n, c in enumerate(templates) if c is not None]
        row = score(
            split(Crystals.concat([templates[n] for n in hits])),
            [reference[n] for n in hits],
            a.workers,
            baseline=False,
        )
        row["without_template"] = a.n - len(hits)
        row["match_percent_of_all"] = row["match_percent_all"] * len(hits) / a.n
        report["substitution"] = row
    text = json.dumps(report, indent=2, default=float)
    print(text)
    if a.out is not None:
        a.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
