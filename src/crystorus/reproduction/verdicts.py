"""What the results say of the paper's statements, in words that follow from the numbers."""

from collections.abc import Mapping
from itertools import pairwise

from crystorus.reproduction.markdown import COLUMNS, all_rows, effect, number
from crystorus.reproduction.probing import ProbeStudy
from crystorus.reproduction.records import from_json
from crystorus.reproduction.settings import Tree

_BUDGETS: Mapping[str, str] = {
    "smoke": (
        "It shows that every command works, on prototypes that nothing is learnt from: no number\n"
        "on it says anything of the paper."
    ),
    "cpu": (
        "It cannot confirm or refute the paper's absolute numbers: a training here\n"
        "sees less than a hundredth of the crystals that Table 1 asks for, through narrower "
        "networks\n(`src/crystorus/reproduction/budgets.toml`). It shows directions: which change "
        "helps and which harms at equal\nprocessor time, beside the noise between seeds."
    ),
    "full": "These are the paper's own settings.",
}
CONTROLS = ("composition", "untrained latent")


def of_budget(report: Tree) -> str:
    """Say which budget a page is of, and what it can show."""
    name = report["budget"]["name"]
    return f"**This page is of budget `{name}`.** {_BUDGETS[name]}"


def of_ablations(report: Tree, preset: str) -> str:
    """Say of every row of a preset by which scores its change counts, and which way."""
    lines = []
    for row in all_rows(report):
        if row["preset"] != preset or row["name"] == preset:
            continue
        found = {c.title.split(",")[0]: effect(report, row["name"], c.key) for c in COLUMNS}
        ways = {
            way: [title for title, text in found.items() if text.startswith(way)]
            for way in ("worse", "better", "diverged")
        }
        said = [f"{way} by {', '.join(titles)}" for way, titles in ways.items() if titles]
        lines.append(f"- {row['label']}: {'; '.join(said) or 'no difference that counts'}")
    return "\n".join(lines)


def of_probe(report: Tree) -> str:
    """Say which controls the representation beats, from the probes with most crystals."""
    study = from_json(ProbeStudy, report["probe"])
    size = max(s.n_train for s in study.scores)
    own = study.mean("latent", size, "mae")[0]
    theirs = {name: study.mean(name, size, "mae")[0] for name in CONTROLS}
    told = ", ".join(f"{name} {number(mae)}" for name, mae in theirs.items())
    better = [name for name, mae in theirs.items() if mae <= own]
    word = f"no better than {' and '.join(better)}" if better else "better than its controls"
    return f"{word}: error of a linear probe of the {study.target}: latent {number(own)}, {told}"


def of_noise(report: Tree) -> str:
    """Say of each forward process where the distance starts, how it goes on and where it ends."""
    said = []
    for name, curve in report["curves"].items():
        points = [p for p in curve["points"] if p["frechet"] is not None]
        values = [p["frechet"] for p in points]
        falls = [
            f"t = {right['share']:g} T"
            for left, right in pairwise(points)
            if right["frechet"] < left["frechet"]
        ]
        last = curve["points"][-1]
        lost = 100 * last["failed"] / (last["n"] + last["failed"])
        way = f"but for {', '.join(falls)}" if falls else "at every step"
        said.append(
            f"`{name}`: {number(values[0])} at t = 0, rises {way}, to {number(values[-1])} at "
            f"{points[-1]['share']:g} T; at T {lost:.0f} % of the crystals have no features"
        )
    return "; ".join(said)


def of_size(report: Tree) -> str:
    """Say what real crystals score against real ones at the largest size and beyond."""
    last = report["points"][-1]
    return (
        f"real against real: {number(last['mean'])} at {last['n']} crystals, "
        f"{number(report['limit'])} beyond all sizes"
    )
