"""The steps of an experiment: train, sample, score. A step that is finished is not done again."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from crystorus.checkpoint import load_checkpoint, read_card
from crystorus.config import SamplerConfig
from crystorus.data.files import file_digest, write_whole
from crystorus.errors import TrainingError
from crystorus.reproduction import fidelity
from crystorus.reproduction.errors import DivergedError
from crystorus.reproduction.inputs import Inputs
from crystorus.reproduction.settings import Budget, Tree, Variant, merged, variant_config
from crystorus.runs.folder import RUN
from crystorus.sample.disk import disk_errors, lock_folder
from crystorus.sample.folder import CRYSTALS, RunFolder
from crystorus.sample.plan import make_requests
from crystorus.sample.run import Job, program_versions, run_settings, sample_to_folder
from crystorus.sample.wanted import of_structures
from crystorus.train.loop import BEST, FAILED, train

METRICS = {
    "validity": "validity",
    "density EMD": "density_emd",
    "energy EMD": "energy_emd",
    "Fréchet CHGNet distance": "frechet_chgnet",
    "Fréchet CHGNet distance, bias-corrected": "frechet_chgnet_corrected",
    "kernel CHGNet distance": "kernel_chgnet",
    "Fréchet ALIGNN distance (FAD)": "fad",
    "match rate": "match_rate",
    "match RMSE": "match_rmse",
    "match rate, random": "random_match_rate",
    "match RMSE, random": "random_match_rmse",
}
"""Names of crystal-fidelity's scores, and what they are called here."""
_CARD = (
    *("preset", "parameters", "steps", "epochs", "crystals_seen", "training_cpu_minutes"),
    *("training_minutes", "figures", "hardware", "torch", "commit", "date"),
)
ALIGNED = "aligned.extxyz"


@dataclass(frozen=True)
class Bench:
    """One folder of one experiment.

    Attributes:
        out: The folder.
        budget: How much is done.
        inputs: The crystals.
        device: Where networks run.
        alignn_weights: ALIGNN's weights, for FAD.
        tell: Told what is being done.
    """

    out: Path
    budget: Budget
    inputs: Inputs
    device: str
    alignn_weights: Path | None
    tell: Callable[[str], None]

    @property
    def cache(self) -> Path:
        """Folder of crystal-fidelity's features and energies."""
        return self.out / "cache"

    def trained(self, variant: Variant, seed: int, *, ablation: bool) -> tuple[Path, Tree]:
        """Train a variant, or go on with its training; returns the checkpoint and its card."""
        own = ablation and self.budget.ablation
        name = f"{'ablation-' if own else ''}{variant.name}-s{seed}"
        folder = self.out / "trainings" / name
        extra = {
            "data": {"train": str(self.inputs.train), "validation": str(self.inputs.validation)},
            "training": {"seed": seed, "accelerator": _accelerator(self.device)},
        }
        config = variant_config(variant, self.budget, ablation=ablation, extra=extra)
        with _locked(folder):
            begun = (folder / RUN).is_file()
            if not begun:  # nothing of worth is there before the run's record
                _empty(folder)
            self.tell(f"training {name}")
            try:
                train(config, folder, resume=begun)
            except TrainingError as error:
                if (folder / FAILED).exists():
                    raise DivergedError(str(error)) from error
                raise
        checkpoint = folder / BEST
        card = read_card(checkpoint)
        about = {key: card["card"][key] for key in _CARD if key in card["card"]}
        return checkpoint, about | {"sha256": card["sha256"], "settings": _settings(card["config"])}

    def sampled(
        self, checkpoint: Path, name: str, *, seed: int, sampler: Tree | None = None
    ) -> tuple[Path, Tree]:
        """Make one crystal per held-out composition; returns the file and how it was made."""
        model = load_checkpoint(checkpoint, device=self.device)
        walk = SamplerConfig(**merged(asdict(model.config.sampling), sampler or {}))
        requests = make_requests(of_structures(self.inputs.held_out), seed=seed)
        job = Job(requests, walk)
        folder = self.out / "samples" / name
        settings = run_settings(job, seed=seed, checkpoint=model.digest)
        self.tell(f"sampling {name}")
        start = time.process_time()
        with RunFolder(folder, settings, versions=program_versions()) as run:
            made = sample_to_folder(model, job, run)
        seconds = time.process_time() - start
        cost = folder / "cost.json"
        if made.made:
            spent = {"made": made.made, "cpu_seconds": round(seconds, 2)}
            write_whole(cost, json.dumps(spent) + "\n")
        about = {"seed": seed, "checkpoint": model.digest, "sampler": asdict(walk)}
        about |= json.loads(cost.read_text()) if cost.exists() else {}
        return _aligned(folder, [row["cif"] for row in made.rows], self.inputs.held_out), about

    def scored(self, crystals: Path, name: str) -> Tree:
        """Score crystals against the held-out ones, the i-th with the i-th."""
        weights = self.alignn_weights
        key = {
            "generated": file_digest(crystals),
            "reference": self.inputs.about["held_out_file"],
            "alignn_weights": file_digest(weights) if weights else "",
        }
        path = self.out / "scores" / f"{name}.json"
        kept = _kept(path, key)
        if kept is not None:
            return kept
        self.tell(f"scoring {name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = path.with_suffix(".raw.json")
        words: list[str | Path] = ["compare", crystals, self.inputs.held_out, "--cache", self.cache]
        words += ["--workers", "1"]
        found = fidelity.run_for_json(
            [*words, "--metrics", "validity,density,energy,frechet,match"], raw
        )
        if weights:
            alignn: list[str | Path] = [
                "--metrics",
                "frechet",
                "--featurizer",
                "alignn",
                "--weights",
                weights,
            ]
            more = fidelity.run_for_json([*words, *alignn], raw)
            found["scores"] += more["scores"]
            found["not_computed"] |= more["not_computed"]
        raw.unlink()
        result = _result(found)
        write_whole(path, json.dumps({"key": key, "result": result}, indent=1) + "\n")
        return result


def _result(found: Tree) -> Tree:
    """Keep what tables show of crystal-fidelity's answer."""
    scores = {}
    for score in found["scores"]:
        if score["name"] in METRICS:
            shown = {k: score[k] for k in ("value", "uncertainty", "real", "n_generated")}
            scores[METRICS[score["name"]]] = shown | {"protocol": score["protocol"]}
    unreadable = len(found["files"]["generated"]["unreadable"])
    return {
        "crystal_fidelity": found["crystal_fidelity"],
        "scores": scores,
        "not_finite": unreadable,
        "not_computed": found["not_computed"],
    }


def _kept(path: Path, key: Tree) -> Tree | None:
    try:
        there = json.loads(path.read_text("utf-8"))
        return dict(there["result"]) if there["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _aligned(folder: Path, cifs: Sequence[str], held_out: Path) -> Path:
    """Write the crystals with a frame that cannot be read in the place of each non-finite one.

    So the i-th stays the i-th, and a crystal that came to nothing counts against its model.
    """
    if all(cifs):
        return folder / CRYSTALS
    made = frames((folder / CRYSTALS).read_text("utf-8"))
    nothing = '1\nLattice="' + " ".join(["nan"] * 9) + '" Properties=species:S:1:pos:R:3\n'
    text = "".join(next(made) if cif else nothing + "H nan nan nan\n" for cif in cifs)
    path = folder / ALIGNED
    write_whole(path, text)
    return path


def frames(text: str) -> Iterator[str]:
    """Cut an extxyz file into its crystals."""
    lines = text.splitlines(keepends=True)
    start = 0
    while start < len(lines):
        end = start + int(lines[start]) + 2
        yield "".join(lines[start:end])
        start = end


def _settings(config: Tree) -> Tree:
    """Leave paths of this machine out of what is published."""
    return {name: part for name, part in config.items() if name != "data"}


def _accelerator(device: str) -> str:
    return device.split(":", maxsplit=1)[0]


def _empty(folder: Path) -> None:
    for item in folder.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
        else:
            item.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of a step."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = lock_folder(folder)
    try:
        yield
    finally:
        os.close(descriptor)
