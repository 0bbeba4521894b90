"""`python -m reproduction`: measure the paper's tables and figures again."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Literal, get_args

from cyclopts import Parameter

from crystal_fidelity.commandline import make_app, run
from reproduction.settings import BUDGETS, ExperimentName, Options

OF_CHECKPOINT = ("table2", "table3", "figure1", "figure2", "figure5", "figure6", "latent")
"""What shows a trained checkpoint, to be measured again when another one is shipped."""
PROGRAMS = ("crystorus", "crystal-fidelity", "torch", "chgnet", "numpy", "pymatgen", "moyopy")
INTERRUPTED = "interrupted; finished work is kept, the same command goes on from it"

app = make_app("python -m reproduction", "The paper's tables and figures, measured again.")


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
    if what in ("page", "publish"):
        from reproduction.page import publish, write_page

        print(write_page(options.docs) if what == "page" else publish(options.out, options.docs))
        return
    every = get_args(ExperimentName)
    chosen = {"all": every, "checkpoint": OF_CHECKPOINT}.get(what, (what,))
    measure(chosen, options, checkpoint_alone=what == "checkpoint")


def measure(experiments: Sequence[str], options: Options, *, checkpoint_alone: bool) -> None:
    """Measure, and write every result with its table or figure.

    Args:
        experiments: What, by name.
        options: On what.
        checkpoint_alone: Whether Tables 2 and 3 have the checkpoint's row alone.

    Raises:
        ReproductionError: If crystals are missing, or the folder holds another experiment.
    """
    from crystal_fidelity.provenance import git_commit, hardware, today, versions
    from crystorus.checkpoint import read_card
    from crystorus.sample.sampler import check_device
    from reproduction.experiment import Experiment, prepare
    from reproduction.page import write_result
    from reproduction.results import MEASURES, checkpoint_table

    check_device(options.device)
    budget = BUDGETS[options.budget]
    asked = Experiment(options, budget, prepare(options, budget))
    read_card(asked.checkpoint)
    for name in experiments:
        alone = checkpoint_alone and name in ("table2", "table3")
        content = (checkpoint_table if alone else MEASURES[name])(asked)
        about = {
            "experiment": name,
            "budget": asdict(budget),
            "seeds": budget.seeds[:1],  # tables name their own
            "inputs": asked.inputs.about,
            "provenance": {
                "date": today(),
                "commit": git_commit(__file__),
                "hardware": hardware(options.device),
                "programs": versions(PROGRAMS),
            },
        }
        write_result(options.out, about | content)
        print(f"{options.out / name}.json, budget {budget.name}: {budget.about}")


def main() -> None:
    """Run the command line; an error that a user can cause is one sentence."""
    words = sys.argv[1:]
    sys.exit(run(app, words, after_interrupt=dict.fromkeys(words[:1], INTERRUPTED)))


if __name__ == "__main__":
    main()
