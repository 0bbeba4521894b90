"""`crystorus paper` from its options to a result, its table and its figure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import typer

from crystorus.checkpoint import read_card
from crystorus.reproduction import fidelity
from crystorus.reproduction.bench import Bench
from crystorus.reproduction.errors import PaperError
from crystorus.reproduction.inputs import Sources, prepare
from crystorus.reproduction.pictures import gallery, latent_space, lattices
from crystorus.reproduction.provenance import provenance
from crystorus.reproduction.publishing import publish, write_page, write_result
from crystorus.reproduction.settings import (
    Budget,
    BudgetName,
    Tree,
    load_budget,
    load_variants,
)
from crystorus.reproduction.studies import distribution_study, noise_study, size_study
from crystorus.reproduction.tables import (
    CHECKPOINT_SEED,
    ablation_table,
    checkpoint_table,
    systems_table,
)
from crystorus.reproduction.times import times_study
from crystorus.sample.command import check_device
from crystorus.terminal import say

Experiment = Literal[
    "table2", "table3", "table4", "figure1", "figure2", "figure3", "figure4", "figure5",
    "figure6", "latent", "times",
]  # fmt: skip
EXPERIMENTS: tuple[Experiment, ...] = get_args(Experiment)
OF_CHECKPOINT: tuple[Experiment, ...] = (
    "table2", "table3", "figure1", "figure2", "figure5", "figure6", "latent",
)  # fmt: skip
"""What shows the shipped checkpoint, to be measured again when another one is shipped."""


@dataclass(frozen=True)
class PaperOrder:
    """What a user asked for, as they said it; None where they said nothing."""

    experiments: tuple[Experiment, ...]
    """What to measure."""
    budget: BudgetName
    """How much of it."""
    out: Path
    """Folder of the experiment."""
    sources: Sources
    """Files of crystals."""
    seeds: str | None = None
    """Seeds of the trainings, comma-separated."""
    rows: str | None = None
    """Rows of Table 4 by name, comma-separated."""
    checkpoint_row: bool = False
    """Whether Tables 2 and 3 have the checkpoint's row alone."""
    baselines: tuple[str, ...] = ()
    """Other systems' crystals, each NAME=FILE."""
    checkpoint: Path | None = None
    """A trained model to show beside those trained here."""
    alignn_weights: Path | None = None
    """ALIGNN's weights, for FAD."""
    device: str = "cpu"
    """Where networks run."""


def carry_out(order: PaperOrder) -> None:
    """Measure, and write every result with its table or figure.

    Raises:
        PaperError: If an option makes no sense or something is missing.
        KeyboardInterrupt: After Ctrl-C; finished steps are kept.
    """
    baselines = parse_baselines(order.baselines)
    seeds, rows = parse_seeds(order.seeds), parse_rows(order.rows)
    bench = _bench(order, baselines)
    try:
        _measure_all(order, bench, seeds, rows, baselines)
    finally:
        fidelity.stop()


def _measure_all(
    order: PaperOrder,
    bench: Bench,
    seeds: Sequence[int],
    rows: Sequence[str],
    baselines: dict[str, Path],
) -> None:
    for experiment in order.experiments:
        chosen = seeds or _own_seeds(experiment, bench.budget)
        if experiment == "table4":
            content = ablation_table(bench, chosen, rows)
        elif order.checkpoint_row and experiment in ("table2", "table3"):
            chosen, content = (CHECKPOINT_SEED,), checkpoint_table(bench, order.checkpoint)
        else:
            content = _measure(experiment, bench, chosen, baselines, order.checkpoint)
        write_result(order.out, _about(experiment, bench, chosen) | content)
        typer.echo(
            f"{order.out / experiment}.json, budget {bench.budget.name}: {bench.budget.about}"
        )


def _bench(order: PaperOrder, baselines: Mapping[str, Path]) -> Bench:
    """Check what was ordered before anything is trained, and make its folder ready."""
    fidelity.check_installed()
    check_device(order.device)
    budget = load_budget(order.budget)
    weights = order.alignn_weights
    if weights is not None and not weights.is_file():
        raise PaperError(
            f"--alignn-weights {weights} does not exist: `crystal-fidelity weights fetch` gets them"
        )
    if order.checkpoint is not None:
        read_card(order.checkpoint)
    missing = [path for path in baselines.values() if not path.exists()]
    if missing:
        raise PaperError(f"--baseline {missing[0]} does not exist: give a file of structures")
    inputs = prepare(order.out, budget, order.sources)
    return Bench(
        order.out, budget, inputs, order.device, weights, lambda step: say(order.budget, step)
    )


def publish_results(out: Path, docs: Path) -> None:
    """Copy results into the docs and write the page anew.

    Raises:
        PaperError: If there are no results, or one is damaged.
    """
    typer.echo(publish(out, docs))


def make_page(docs: Path) -> None:
    """Write the results page again from the results in `docs`/paper.

    Raises:
        PaperError: If there are no results, or one is damaged.
    """
    typer.echo(write_page(docs))


def _measure(
    experiment: str,
    bench: Bench,
    seeds: Sequence[int],
    baselines: dict[str, Path],
    checkpoint: Path | None,
) -> Tree:
    match experiment:
        case "table2" | "table3":
            return systems_table(bench, seeds, baselines, checkpoint)
        case "figure1":
            return gallery(bench, checkpoint)
        case "figure2":
            return lattices(bench, checkpoint)
        case "figure3":
            return noise_study(bench)
        case "figure4":
            return size_study(bench)
        case "figure5":
            return distribution_study(bench, checkpoint, baselines, "density")
        case "figure6":
            return distribution_study(bench, checkpoint, baselines, "formation energy")
        case "times":
            return times_study(bench)
        case _:
            return latent_space(bench, checkpoint)


def _own_seeds(experiment: Experiment, budget: Budget) -> tuple[int, ...]:
    if experiment in ("table2", "table3"):
        return budget.seeds
    return budget.ablation_seeds if experiment == "table4" else budget.seeds[:1]


def _about(experiment: Experiment, bench: Bench, seeds: Sequence[int]) -> Tree:
    return {
        "experiment": experiment,
        "budget": asdict(bench.budget),
        "seeds": list(seeds),
        "inputs": bench.inputs.about,
        "provenance": provenance(bench.device),
    }


def parse_seeds(text: str | None) -> tuple[int, ...]:
    """Read comma-separated seeds.

    Raises:
        PaperError: If they are no whole numbers from 0 up.
    """
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) != len(parts):
        raise PaperError(f"--seeds {text}: give different whole numbers from 0 up, as in 0,1")
    return tuple(int(part) for part in parts)


def parse_rows(text: str | None) -> tuple[str, ...]:
    """Read names of rows of Table 4; the presets they are compared with come too.

    Raises:
        PaperError: If there is no such row.
    """
    variants = load_variants()
    known = tuple(variants)
    if text is None:
        return known
    wanted = [part.strip() for part in text.split(",")]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise PaperError(f"--rows has no {unknown[0]!r}: choose from {', '.join(known)}")
    needed = {*wanted, *(variants[name].preset for name in wanted)}
    return tuple(name for name in known if name in needed)


def parse_baselines(texts: Sequence[str]) -> dict[str, Path]:
    """Read NAME=FILE.

    Raises:
        PaperError: If one is not of that form or a name is given twice.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not (name and equals and file) or "/" in name:
            raise PaperError(f"--baseline {text}: write NAME=FILE, as in CDVAE=cdvae.extxyz")
        if name in found:
            raise PaperError(f"--baseline {name} is given twice: choose another name")
        found[name] = Path(file)
    return found
