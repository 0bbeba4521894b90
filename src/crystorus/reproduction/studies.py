"""Figures 3 to 6: how the distance behaves, and how densities and energies are distributed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from crystorus.checkpoint import SHIPPED
from crystorus.config import Preset
from crystorus.crystal_model import build_diffusion
from crystorus.data.files import file_digest, write_whole
from crystorus.data.store import open_store
from crystorus.data.writing import write_extxyz
from crystorus.diffusion.cell_prior import fit_cell_statistics
from crystorus.diffusion.process import Diffusion
from crystorus.geometry import Crystals
from crystorus.reproduction import fidelity
from crystorus.reproduction.bench import Bench
from crystorus.reproduction.inputs import choose
from crystorus.reproduction.settings import Tree, load_variants, variant_config
from crystorus.reproduction.tables import BASES, sample_checkpoint

NOISE_SEED = 0
PRESETS: tuple[Preset, ...] = get_args(Preset)


def noise_study(bench: Bench) -> Tree:
    """Return Fig. 3: the distance of noised training crystals from the held-out ones.

    The noise is that of each preset's forward process, at shares of its steps.
    """
    curves = {}
    for preset in PRESETS:
        files = _noised_files(bench, preset)
        answer = bench.out / "studies" / f"noise-{preset}.json"
        words: list[str | Path] = ["study", "noise", bench.inputs.held_out, *files.values()]
        found = _study(bench, words, answer, list(files.values()))
        steps = {float(path.stem.rpartition("-")[2]): share for share, path in files.items()}
        points = [p | {"share": steps[p["level"]]} for p in found["points"]]
        curves[preset] = {"points": points, "identity": found["identity"]}
    return {"curves": curves}


def size_study(bench: Bench) -> Tree:
    """Return Fig. 4: the distance of training from held-out crystals against their number."""
    files = []
    for name, source in (("train", bench.inputs.train), ("held-out", bench.inputs.held_out_store)):
        path = bench.out / "studies" / f"{name}.extxyz"
        if not path.exists():
            store = open_store(source, verify=False)
            chosen = choose(store, bench.budget.study_crystals)
            _write(path, store.select(chosen, dtype=torch.float64))
        features = path.with_suffix(".npz")
        if not features.exists():
            bench.tell(f"features of {name}")
            fidelity.run(["features", path, features, "--cache", bench.cache])
        files.append(features)
    found = _study(bench, ["study", "size", *files], bench.out / "studies" / "size.json", files)
    return {"points": found["points"], "limit": found["limit"], "identity": found["identity"]}


def distribution_study(
    bench: Bench, checkpoint: Path | None, baselines: Mapping[str, Path], which: str
) -> Tree:
    """Return Figs 5 and 6: "density" or "formation energy" of generated and real crystals."""
    variants = load_variants()
    sets = {"real": bench.inputs.held_out}
    for name in BASES:
        seed = bench.budget.seeds[0]
        trained, _ = bench.trained(variants[name], seed, ablation=False)
        sets[name], _ = bench.sampled(trained, f"{name}-s{seed}", seed=seed)
    sets["checkpoint"], _ = sample_checkpoint(bench, checkpoint or SHIPPED)
    links = {label: _named(bench, label, path) for label, path in {**sets, **baselines}.items()}
    words: list[str | Path] = ["study", "distributions", *links.values(), "--energy", "chgnet"]
    answer = bench.out / "studies" / "distributions.json"
    found = _study(bench, words, answer, list(links.values()))
    labels = {path.name: label for label, path in links.items()}
    chosen = next(d for d in found["distributions"] if d["name"] == which)
    values = {
        labels[name]: [None if v is None else round(v, 4) for v in row]
        for name, row in chosen["values"].items()
    }
    return {"property": which, "unit": chosen["unit"], "values": values}


def _noised_files(bench: Bench, preset: Preset) -> dict[float, Path]:
    """Write the noised crystals, a file per share of the steps, the step last in its name."""
    store = open_store(bench.inputs.train, verify=False)
    crystals = store.select(choose(store, bench.inputs.about["compositions"]), dtype=torch.float64)
    statistics = fit_cell_statistics(store.select(range(len(store))))
    config = variant_config(load_variants()[preset], bench.budget, ablation=False, extra={})
    diffusion = build_diffusion(config, statistics)
    files = {}
    for share in bench.budget.noise_levels:
        step = round(share * diffusion.steps)
        path = bench.out / "studies" / f"noised-{preset}-{step:04d}.extxyz"
        if not path.exists():
            _write(path, _noised(crystals, diffusion, step))
        files[share] = path
    return files


def _noised(crystals: Crystals, diffusion: Diffusion, step: int) -> Crystals:
    if step == 0:
        return crystals
    generator = torch.Generator().manual_seed(NOISE_SEED)
    atoms = torch.randn(crystals.frac_coords.shape, generator=generator, dtype=torch.float64)
    cells = torch.randn(len(crystals), 6, generator=generator, dtype=torch.float64)
    t = torch.full((len(crystals),), step)
    return diffusion.noise(crystals, t, atoms, cells)[0]


def _write(path: Path, crystals: Crystals) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    write_extxyz(aside, crystals)
    aside.replace(path)


def _named(bench: Bench, label: str, path: Path) -> Path:
    """Copy a set to a file of its own name, by which crystal-fidelity tells sets apart."""
    target = bench.out / "studies" / f"set-{label}{''.join(path.suffixes)}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists() or file_digest(target) != file_digest(path):
        write_whole(target, path.read_text("utf-8"))
    return target


def _study(
    bench: Bench, words: Sequence[str | Path], answer: Path, inputs: Sequence[Path]
) -> dict[str, Any]:
    """Run a study, or take its answer if its files are the same."""
    key = {path.name: file_digest(path) for path in inputs}
    kept = answer.with_suffix(".key")
    if answer.exists() and kept.exists() and kept.read_text() == json.dumps(key):
        return dict(json.loads(answer.read_text("utf-8")))
    bench.tell(" ".join(map(str, words[:2])))
    answer.parent.mkdir(parents=True, exist_ok=True)
    cache: list[str | Path] = [] if words[1] == "size" else ["--cache", bench.cache]
    found = fidelity.run_for_json([*words, *cache], answer)
    write_whole(kept, json.dumps(key))
    return dict(found)
