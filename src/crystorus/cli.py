"""The command line: the names of the commands, each of which is imported when it is asked for.

The options of a command are the fields of a dataclass in the `options.py` of its package.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from platform import machine
from typing import Annotated

from cyclopts import Parameter

from crystal_fidelity.commandline import FAILED, log, make_app, run


def _version() -> str:
    """Return the versions of this program, Python and torch, the device and the weights."""
    import json
    from importlib import resources

    from crystal_fidelity.provenance import versions

    found = versions(("crystorus", "torch"))
    torch = found.get("torch", "missing")
    # torch itself is not asked, whose import takes seconds.
    cuda = "+cpu" not in torch and Path("/proc/driver/nvidia/version").exists()
    apple = (sys.platform, machine()) == ("darwin", "arm64")
    device = "cuda" if cuda else "mps" if apple else "cpu"
    card = json.loads(resources.files("crystorus").joinpath("weights/mp20/card.json").read_text())
    return (
        f"crystorus {found.get('crystorus', '(not installed)')}, weights mp20 "
        f"{card['sha256'][:12]}\nPython {found['python']}, torch {torch}, device {device}"
    )


app = make_app(
    "crystorus",
    "Crystals from a composition, as in: crystorus sample LiFeO2 --z 1,2,4 --n 8 --out out. "
    "With --debug an error shows its traceback.",
    _version,
)
data = make_app("data", "Fetch and prepare structures.")
templates = make_app("templates", "Known crystals to start from.")

RENAMED: dict[tuple[str, str], str] = {
    ("", "judge"): "train-scorer",
    ("hull", "--sampler-steps"): "--steps",
    ("hull", "--calculator"): "--potential",
    ("relax", "--calculator"): "--potential",
    ("rank", "--calculator"): "--potential",
}
"""New name by (command, old option), and by ("", old command): understood for one version."""

_GO_ON = "interrupted; finished work is kept, the same command goes on from it"
_NOTHING = "interrupted; nothing was written"
AFTER_INTERRUPT = {
    "sample": "interrupted; what was finished is kept, the same command goes on from it",
    "refine": "interrupted; what was finished is kept, the same command goes on from it",
    "train": "interrupted; once training has begun its state is saved, and the same command with "
    "--resume goes on from it",
    "train-scorer": _GO_ON,
    "predict": _GO_ON,
    "hull": _GO_ON,
    "relax": _GO_ON,
    "rank": _GO_ON,
    "order": _NOTHING,
    "data get": "interrupted; the same command gets the missing files",
    "data build": _NOTHING,
    "templates build": _NOTHING,
}
"""What Ctrl-C leaves behind, by command."""


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line and end with its exit status.

    Args:
        words: Of the command line; those that the program was called with for None.
    """
    # Notes on operations of non-primitive cells say nothing to the reader of a table.
    logging.getLogger("moyo").setLevel(logging.ERROR)
    given = sys.argv[1:] if words is None else words
    raise SystemExit(run(app, given, renamed=RENAMED, after_interrupt=AFTER_INTERRUPT))


app.command("crystorus.sample.command:sample", help="Make crystals of given compositions.")
app.command("crystorus.sample.command:refine", help="Repair or perturb given structures.")
app.command("crystorus.train.command:train", help="Train a model.")
app.command(
    "crystorus.train.command:train_scorer",
    help="Train a scorer, which chooses among the --candidates of sample.",
)
data.command(
    "crystorus.data.command:data_get", name="get", help="Download a data set and verify it."
)
data.command(
    "crystorus.data.command:data_build",
    name="build",
    help="Read, reduce and validate structures into one file to train on.",
)
templates.command(
    "crystorus.templates.command:build",
    help="Make a library of known crystals for sample --start templates.",
)
app.command(
    "crystorus.hull.command:predict",
    help="Sample, relax and rank crystals of given formulas.",
)
app.command(
    "crystorus.hull.command:hull",
    help="Go from a chemical system to relaxed phases on a convex hull.",
)
app.command(
    "crystorus.hull.command:relax", help="Screen and relax structures into an ASE database."
)
app.command(
    "crystorus.hull.command:rank",
    help="Rank relaxed structures on a convex hull; plots and report.",
)
app.command(
    "crystorus.data.command:order",
    help="Write ordered supercells of a crystal whose sites are partly occupied.",
)
app.command("crystorus.results.command:view", help="Open results in the browser.")
app.command(
    "crystorus.results.command:export",
    help="Write crystals as inputs of VASP, Quantum ESPRESSO or FHI-aims.",
)
app.command(data)
app.command(templates)


@app.command
def info(checkpoint: Path | None = None, /) -> None:
    """Show a checkpoint's card: data, budget, losses, figures.

    Args:
        checkpoint: A checkpoint folder; without it the shipped one.
    """
    from crystorus.checkpoint import SHIPPED, check_weights, read_card, read_scorer_card
    from crystorus.terminal import show_card

    folder = checkpoint or SHIPPED
    card = read_card(folder)
    check_weights(folder, card)
    show_card(str(checkpoint or "The shipped checkpoint"), card)
    scorer = read_scorer_card(folder)
    if scorer is not None:
        show_card("Its scorer, for --candidates", scorer)


@app.command(name="help")
def show_help(*command: str) -> None:
    """Show the help of a command, as --help does.

    Args:
        command: Such as sample, or data get; without it the list of commands.
    """
    app([*command, "--help"], exit_on_error=False, print_error=False, result_action="return_value")


@app.command
def paper(*words: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]) -> int:
    """Say how the paper's tables and figures are measured again."""
    command = " ".join(("python -m reproduction", *words))
    log(
        "note",
        "the paper is measured again by the folder `reproduction` of the repository, which is not "
        f"installed with the package: run `{command}` at the root of a clone",
    )
    return FAILED


if __name__ == "__main__":
    main()
