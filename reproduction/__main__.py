"""`python -m reproduction`: measure the paper's tables and figures again."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from cyclopts import Parameter

from crystal_fidelity.commandline import make_app, run
from reproduction import ReproductionError

if TYPE_CHECKING:
    from reproduction.experiment import Variant

ExperimentName = Literal[
    "table2", "table3", "table4", "figure1", "figure2", "figure3", "figure4", "figure5",
    "figure6", "latent", "times",
]  # fmt: skip
OF_CHECKPOINT = ("table2", "table3", "figure1", "figure2", "figure5", "figure6", "latent")
"""What shows a trained checkpoint, to be measured again when another one is shipped."""
PROGRAMS = ("crystorus", "crystal-fidelity", "torch", "chgnet", "numpy", "pymatgen", "moyopy")

app = make_app("python -m reproduction", "The paper's tables and figures, measured again.")


@dataclass(frozen=True)
class Options:
    """What is measured, and on what."""

    budget: Literal["smoke", "cpu", "full"] = "smoke"
    """Minutes, an hour, or the paper's own settings."""
    out: Path = Path("runs/paper")
    """Folder of the experiment; an interrupted one goes on there."""
    data: Path | None = None
    """Crystals to train on; prototypes for smoke."""
    validation: Path | None = None
    """Crystals that choose the checkpoint."""
    held_out: Path | None = None
    """Crystals whose compositions are sampled; those of --validation by default."""
    seeds: str | None = None
    """Seeds of the trainings, 0,1; the budget's by default."""
    rows: str | None = None
    """Rows of Table 4, paper-a,default-ode; all by default."""
    baseline: tuple[str, ...] = ()
    """Another system's crystals, NAME=FILE; can be repeated."""
    checkpoint: Path | None = None
    """A trained model; the shipped one by default."""
    alignn_weights: Path | None = None
    """ALIGNN's weights, for FAD; see `crystal-fidelity weights`."""
    device: str = "cpu"
    """Where networks run: cpu, cuda, cuda:1, mps."""
    docs: Path = Path("docs")
    """Folder of the page; its paper/ holds the published results."""


@app.default
def reproduce(
    what: Literal[ExperimentName, "all", "checkpoint", "page", "publish"],
    /,
    *,
    options: Annotated[Options, Parameter(name="*")] = Options(),
) -> None:
    """Measure the paper's tables and figures again, beside what it printed.

    Args:
        what: What to measure; checkpoint: all that shows the trained model; page and publish write
            the page of results.
        options: On what.

    Raises:
        ReproductionError: If an option makes no sense or something is missing.
    """
    every = get_args(ExperimentName)
    chosen = {"all": every, "checkpoint": OF_CHECKPOINT}.get(what, (what,))
    if what in ("page", "publish"):
        from reproduction.page import publish, write_page

        print(write_page(options.docs) if what == "page" else publish(options.out, options.docs))
    else:
        measure(chosen, options, checkpoint_alone=what == "checkpoint")


def measure(experiments: Sequence[str], options: Options, *, checkpoint_alone: bool) -> None:
    """Measure, and write every result with its table or figure.

    Args:
        experiments: What, by name.
        options: On what.
        checkpoint_alone: Whether Tables 2 and 3 have the checkpoint's row alone.

    Raises:
        ReproductionError: If an option makes no sense or something is missing.
    """
    seeds, baselines = parse_seeds(options.seeds), parse_baselines(options.baseline)
    from crystal_fidelity.provenance import git_commit, hardware, today, versions
    from crystorus.checkpoint import SHIPPED, read_card
    from crystorus.sample.sampler import check_device
    from reproduction import experiment, results
    from reproduction.page import write_result

    rows = parse_rows(options.rows, experiment.load_variants())
    check_device(options.device)
    weights, checkpoint = options.alignn_weights, options.checkpoint or SHIPPED
    if weights is not None and not weights.is_file():
        raise ReproductionError(
            f"--alignn-weights {weights} does not exist: `crystal-fidelity weights fetch` gets them"
        )
    read_card(checkpoint)
    budget = experiment.load_budget(options.budget)
    inputs = experiment.prepare(
        options.out, budget, options.data, options.validation, options.held_out
    )
    asked = experiment.Experiment(
        options.out, budget, inputs, options.device, weights, checkpoint, baselines, seeds, rows
    )
    for name in experiments:
        alone = checkpoint_alone and name in ("table2", "table3")
        content = (results.checkpoint_table if alone else results.MEASURES[name])(asked)
        about = {
            "experiment": name,
            "budget": asdict(budget),
            "seeds": list(budget.seeds[:1]),  # but for the tables
            "inputs": inputs.about,
            "provenance": {
                "date": today(),
                "commit": git_commit(__file__),
                "hardware": hardware(options.device),
                "programs": versions(PROGRAMS),
            },
        }
        write_result(options.out, about | content)
        print(f"{options.out / name}.json, budget {budget.name}: {budget.about}")


def parse_seeds(text: str | None) -> tuple[int, ...]:
    """Read comma-separated seeds.

    Raises:
        ReproductionError: If they are no different whole numbers from 0 up.
    """
    parts = [part.strip() for part in text.split(",")] if text is not None else []
    if not all(part.isdecimal() for part in parts) or len(set(parts)) != len(parts):
        raise ReproductionError(
            f"--seeds {text}: give different whole numbers from 0 up, as in 0,1"
        )
    return tuple(int(part) for part in parts)


def parse_rows(text: str | None, variants: Mapping[str, "Variant"]) -> tuple[str, ...]:
    """Read names of rows of Table 4; the presets they are compared with come too.

    Raises:
        ReproductionError: If there is no such row.
    """
    wanted = [part.strip() for part in text.split(",")] if text is not None else list(variants)
    unknown = [name for name in wanted if name not in variants]
    if unknown:
        raise ReproductionError(f"--rows has no {unknown[0]!r}: choose from {', '.join(variants)}")
    needed = {*wanted, *(variants[name].preset for name in wanted)}
    return tuple(name for name in variants if name in needed)


def parse_baselines(texts: Sequence[str]) -> dict[str, Path]:
    """Read NAME=FILE.

    Raises:
        ReproductionError: If one is not of that form, is given twice or names no file.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not (name and equals and file) or "/" in name:
            raise ReproductionError(f"--baseline {text}: write NAME=FILE, as in CDVAE=cdvae.extxyz")
        if name in found:
            raise ReproductionError(f"--baseline {name} is given twice: choose another name")
        found[name] = Path(file)
        if not found[name].is_file():
            raise ReproductionError(f"--baseline {text} does not exist: give a structure file")
    return found


def main() -> None:
    """Run the command line; an error that a user can cause is one sentence."""
    left = "interrupted; finished work is kept, the same command goes on from it"
    sys.exit(run(app, sys.argv[1:], after_interrupt=dict.fromkeys(sys.argv[1:2], left)))


if __name__ == "__main__":
    main()
