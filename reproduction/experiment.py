"""The steps of an experiment: choose crystals, train, sample, score.

Every step keeps its result in the experiment's folder; one that is finished is not done again.
"""

import csv
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

import crystal_fidelity
from crystal_fidelity.commandline import log
from crystal_fidelity.compare import compare
from crystal_fidelity.features import DISTANCE_NAMES
from crystal_fidelity.files import file_digest, write_atomic
from crystal_fidelity.options import Settings
from crystal_fidelity.reading import read_structures
from crystal_fidelity.report import write_json
from crystal_fidelity.structures import Entry, ReadFailure
from crystorus.checkpoint import SHIPPED, load_checkpoint, read_card
from crystorus.config import SamplerConfig, config_to_dict
from crystorus.data.convert import crystals_from
from crystorus.data.store import CrystalStore, open_or_build
from crystorus.data.writers import extxyz_text
from crystorus.errors import TrainingError
from crystorus.runs.folder import COMPLETE, read_record
from crystorus.sample.options import SampleOptions
from crystorus.sample.output import CRYSTALS, TABLE, OutputFolder, run_settings
from crystorus.sample.requests import choose_compositions, make_requests
from crystorus.sample.sampler import SamplingPlan, make
from crystorus.train.loop import BEST, FAILED, train
from reproduction import DivergedError, ReproductionError
from reproduction.settings import Budget, Options, Tree, Variant, merged, variant_config

MAX_ATOMS = 20
CHOICE_SEED = 4
"""Seed of the choice of held-out compositions; the project's other figures used 0 to 3."""
METRICS = {
    "validity": "validity",
    "density EMD": "density_emd",
    "energy EMD": "energy_emd",
    "Fréchet CHGNet distance": "frechet_chgnet",
    "Fréchet CHGNet distance, bias-corrected": "frechet_chgnet_corrected",
    "kernel CHGNet distance": "kernel_chgnet",
    DISTANCE_NAMES["alignn"]: "fad",
    "match rate, all": "match_rate",
    "match RMSE, all": "match_rmse",
    "match rate, all, random": "random_match_rate",
    "match RMSE, all, random": "random_match_rmse",
}
"""Names of crystal-fidelity's scores, and what they are called here."""
CARD = (
    *("preset", "parameters", "steps", "epochs", "crystals_seen", "training_cpu_minutes"),
    *("training_minutes", "figures", "hardware", "torch", "commit", "date"),
)
"""What results keep of a checkpoint's card."""


@dataclass(frozen=True)
class Inputs:
    """Crystals ready for use."""

    train: CrystalStore
    """To train on."""
    validation: CrystalStore
    """On which checkpoints are chosen."""
    held_out: CrystalStore
    """What the held-out crystals are chosen from."""
    compositions: Path
    """The crystals whose compositions are sampled, an extxyz file."""
    others: Path
    """As many training crystals, an extxyz file: what real data score."""
    about: Tree
    """Names, digests and numbers of the crystals, for every result."""


def choose(store: CrystalStore, count: int) -> np.ndarray:
    """Return which crystals of at most `MAX_ATOMS` are taken, in the store's order; 0: all."""
    small = np.flatnonzero(store.n_atoms <= MAX_ATOMS)
    if not count or count >= len(small):
        return small
    return np.sort(np.random.default_rng(CHOICE_SEED).permutation(small)[:count])


def prepare(options: Options, budget: Budget) -> Inputs:
    """Make a folder the home of one experiment and return its crystals.

    Raises:
        ReproductionError: If crystals are missing, or the folder holds an experiment on others.
        ReadingError: If they cannot be read.
    """
    out, train, validation = options.out, options.data, options.validation
    if train is None and budget.name != "smoke":
        raise ReproductionError(
            f"--budget {budget.name} needs --data TRAIN and --validation VALIDATION: fetch MP-20 "
            "with `crystorus data get mp-20`, or take --budget smoke"
        )
    folder = out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    if train is None or validation is None:
        train, validation = _prototypes(folder)
    files = {"train": train, "validation": validation, "held_out": options.held_out or validation}
    stores: dict[str, CrystalStore] = {}
    about: Tree = {}
    for name, path in files.items():
        stores[name] = store = open_or_build(path, folder / f"{name}.store")
        names = [source["name"] for source in store.header["sources"]]
        about[name] = {"sources": names, "sha256": store.header["sha256"], "crystals": len(store)}
    chosen = choose(stores["held_out"], budget.compositions)
    about["compositions"] = len(chosen)
    _claim(out, {"budget": budget.name, "inputs": about})
    compositions, others = folder / "held-out.extxyz", folder / "train-part.extxyz"
    for path, store, rows in (
        (compositions, stores["held_out"], chosen),
        (others, stores["train"], choose(stores["train"], len(chosen))),
    ):
        if not path.exists():
            ids = store.ids
            crystals = store.select(rows, dtype=torch.float64)
            write_atomic(path, extxyz_text(crystals, [{"id": ids[int(row)]} for row in rows]))
    about["held_out_file"] = file_digest(compositions)
    return Inputs(**stores, compositions=compositions, others=others, about=about)


def _claim(out: Path, experiment: Tree) -> None:
    """Refuse to mix budgets or crystals in one folder, in which several commands may run."""
    path = out / "experiment.json"
    if not path.exists():
        write_atomic(path, json.dumps(experiment, indent=2) + "\n")
        return
    try:
        there = json.loads(path.read_text("utf-8"))
        budget = there["budget"]
    except (ValueError, KeyError, TypeError) as error:
        raise ReproductionError(f"{path} is damaged ({error}): choose another --out") from error
    if there != experiment:
        what = f"budget {budget}" if budget != experiment["budget"] else "other crystals"
        raise ReproductionError(f"{out} holds an experiment with {what}: choose another --out")


def _prototypes(folder: Path) -> tuple[Path, Path]:
    """Write the AFLOW prototypes that pymatgen carries, every fourth for validation."""
    train, validation = (folder / f"prototypes-{part}.extxyz" for part in ("train", "validation"))
    structures = [entry["snl"].structure for entry in AFLOW_PROTOTYPE_LIBRARY]
    small = [s for s in structures if s.is_ordered and len(s) <= MAX_ATOMS]
    for path, part in (
        (train, [s for i, s in enumerate(small) if i % 4]),
        (validation, small[::4]),
    ):
        if not path.exists():
            crystals = crystals_from(part, dtype=torch.float64)
            write_atomic(path, extxyz_text(crystals))
    return train, validation


@dataclass(frozen=True)
class Experiment:
    """One folder of one experiment, and what of it is asked for."""

    options: Options
    budget: Budget
    inputs: Inputs

    @property
    def checkpoint(self) -> Path:
        """The trained model that is shown."""
        return self.options.checkpoint or SHIPPED

    @property
    def cache(self) -> Path:
        """Folder of crystal-fidelity's features and energies."""
        return self.options.out / "cache"

    def log(self, step: str) -> None:
        """Say on standard error what is being done."""
        log(self.budget.name, step)

    def train(self, variant: Variant, seed: int, *, ablation: bool) -> tuple[Path, Tree]:
        """Train a variant, or go on with its training; return the checkpoint and its card.

        Raises:
            DivergedError: If a loss or a gradient is no longer finite.
        """
        folder = self.options.out / "trainings" / self.name_of(variant, seed, ablation=ablation)
        data = {name: str(getattr(self.inputs, name).path) for name in ("train", "validation")}
        training = {"seed": seed, "accelerator": self.options.device.partition(":")[0]}
        extra = {"data": data, "training": training}
        config = variant_config(variant, self.budget, ablation=ablation, extra=extra)
        record = read_record(folder) or {}
        finished = record.get("status") == COMPLETE
        if not finished or record["settings"] != json.loads(json.dumps(config_to_dict(config))):
            self.log(f"training {folder.name}")
            try:
                train(config, folder, resume=bool(record))
            except TrainingError as error:
                if (folder / FAILED).exists():
                    raise DivergedError(str(error)) from error
                raise
        card = read_card(folder / BEST)
        about = {key: card["card"][key] for key in CARD if key in card["card"]}
        # Paths of this machine stay out of what is published.
        settings = {key: part for key, part in card["config"].items() if key != "data"}
        return folder / BEST, about | {"sha256": card["sha256"], "settings": settings}

    def name_of(self, variant: Variant, seed: int, *, ablation: bool) -> str:
        """Name a training and what is sampled from it; an ablation's only where it differs."""
        own = "ablation-" if ablation and self.budget.ablation else ""
        return f"{own}{variant.name}-s{seed}"

    def sample(
        self, checkpoint: Path, name: str, *, seed: int, sampler: Tree | None = None
    ) -> tuple[Path, Tree]:
        """Make one crystal per held-out composition, or what is missing of them.

        Returns:
            The folder, for `read_crystals`, and how they were made.
        """
        model = load_checkpoint(checkpoint, device=self.options.device)
        settings = merged(asdict(model.config.sampling), sampler or {})
        plan = SamplingPlan(SamplerConfig(**settings))
        options = SampleOptions(seed=seed, like=self.inputs.compositions)
        requests = make_requests(choose_compositions((), options), seed=seed)
        folder = self.options.out / "samples" / name
        run = run_settings(requests, plan, model, options)
        cost = folder / "cost.json"
        spent = json.loads(cost.read_text("utf-8")) if cost.exists() else {}
        with OutputFolder(folder, run, total=len(requests)) as output:
            if not output.run.complete:
                self.log(f"sampling {name}")
                missing = [request for request in requests if request.index not in output.done]
                began = time.process_time() - spent.get("cpu_seconds", 0)
                for part in make(model, missing, plan):
                    seconds = round(time.process_time() - began, 2)
                    spent = {"made": spent.get("made", 0) + len(part), "cpu_seconds": seconds}
                    write_atomic(cost, json.dumps(spent) + "\n")
                    output.commit(part, symprec=options.symprec)
                output.finish()
        key = {"seed": seed, "checkpoint": model.digest, "sampler": settings}
        return folder, key | spent

    def score(self, crystals: Path, name: str) -> Tree:
        """Score crystals against the held-out ones, the i-th with the i-th."""
        weights = self.options.alignn_weights

        def measure() -> Tree:
            made, real = read_crystals(crystals), read_structures(self.inputs.compositions)
            wanted = Settings(
                metrics=("validity", "density", "energy", "frechet", "match"), cache=self.cache
            )
            found = compare(made, real, wanted)
            scores = found.scores
            if weights:
                fad = replace(wanted, metrics=("frechet",), featurizer="alignn", weights=weights)
                scores += compare(made, real, fad).scores
            kept = ("value", "uncertainty", "real", "n_generated", "protocol")
            return {
                "crystal_fidelity": crystal_fidelity.__version__,
                "scores": {
                    METRICS[score.name]: {key: getattr(score, key) for key in kept}
                    for score in scores
                    if score.name in METRICS
                },
                "not_finite": sum(isinstance(entry, ReadFailure) for entry in made),
                "not_computed": found.not_computed,
            }

        key = {
            "generated": digest_of(crystals),
            "reference": self.inputs.about["held_out_file"],
            "alignn_weights": file_digest(weights) if weights else "",
        }
        return self.kept(f"scores/{name}", key, measure)

    def kept(self, name: str, key: Tree, measure: Callable[[], Tree]) -> Tree:
        """Return a result that was measured before from the same inputs, or measure it now.

        Args:
            name: Folder and name of its file.
            key: The inputs, in JSON's types.
            measure: Gives the result; what JSON has not, such as NaN, becomes null.

        Raises:
            ReproductionError: If it cannot be measured.
        """
        path = self.options.out / f"{name}.json"
        try:
            there = json.loads(path.read_text("utf-8"))
            if there["key"] == key:
                return dict(there["result"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # it is measured again
        self.log(f"measuring {path.stem}")
        try:
            result = measure()
        except (ValueError, ImportError) as error:
            raise ReproductionError(f"{path.stem} cannot be measured: {error}") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key, "result": result})
        return dict(json.loads(path.read_text("utf-8"))["result"])


def read_crystals(path: Path) -> list[Entry]:
    """Read crystals; of a folder of `Experiment.sample`, one for every composition.

    A crystal that came to nothing keeps its place: it counts against its model.
    """
    if not path.is_dir():
        return read_structures(path)
    with (path / TABLE).open(newline="", encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    finite = any(row["cif_file"] for row in rows)
    made = iter(read_structures(path / CRYSTALS) if finite else [])
    lost = "its cell or its coordinates are not finite"
    return [next(made) if row["cif_file"] else ReadFailure(row["index"], lost) for row in rows]


def digest_of(path: Path) -> str:
    """Return the digest of what `read_crystals` reads."""
    files = (path / CRYSTALS, path / TABLE) if path.is_dir() else (path,)
    return " ".join(map(file_digest, files))
