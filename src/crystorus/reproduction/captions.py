"""Figures 1 and 2, the latent space and times as Markdown: pure functions of a result."""

from crystorus.reproduction.drawing import Gallery
from crystorus.reproduction.lattice_systems import (
    LATTICE_SYSTEMS,
    LatticeStudy,
    Symmetries,
    agreement,
    distance,
)
from crystorus.reproduction.markdown import header, line, number, page
from crystorus.reproduction.probing import ProbeStudy
from crystorus.reproduction.records import from_json
from crystorus.reproduction.settings import Tree


def gallery(report: Tree) -> str:
    """Return the space groups of the crystals of Fig. 1."""
    drawn = from_json(Gallery, report["gallery"])
    lines = [header(["composition", "generated", "real"])]
    for made, real in zip(drawn.rows[0], report["real_groups"], strict=True):
        lines.append(line([made.formula, f"{made.symbol} ({made.number})", real]))
    return page(report, lines)


def lattices(report: Tree) -> str:
    """Return the shares of the lattice systems, by space group and by the cell alone."""
    study = from_json(LatticeStudy, report["lattices"])
    titles = ["set", "tolerance, Å", "by", *LATTICE_SYSTEMS, "distance from real"]
    lines = [header(titles)]
    for tolerance in study.tolerances:
        real = study.of("real", tolerance)
        for name in study.names:
            found = study.of(name, tolerance)
            if found.groups:
                lines.append(_shares(found, found.crystal_shares(), real.crystal_shares(), "group"))
            lines.append(_shares(found, found.cell_shares(), real.cell_shares(), "cell"))
    lost = [f"{name} {count}" for name, count in report["no_crystals"].items() if count]
    note = f"\n\nCounted as triclinic, collapsed or not finite: {', '.join(lost)}." if lost else ""
    return page(report, lines) + note


def _shares(found: Symmetries, shares: dict[str, float], real: dict[str, float], by: str) -> str:
    cells = [f"{100 * shares.get(system, 0):.1f}" for system in LATTICE_SYSTEMS]
    return line([found.name, f"{found.symprec:g}", by, *cells, f"{distance(shares, real):.3f}"])


def agreement_of(report: Tree, name: str, tolerance: float) -> tuple[float, float]:
    """Return how often a set's crystals have the lattice system of their reference."""
    study = from_json(LatticeStudy, report["lattices"])
    left, right = study.of(name, tolerance), study.of("real", tolerance)
    return agreement(left.groups, right.groups)


def distance_of(report: Tree, name: str, tolerance: float) -> str:
    """Return how far a set's cells are from the real ones, by their lattice systems."""
    study = from_json(LatticeStudy, report["lattices"])
    left, right = study.of(name, tolerance), study.of("real", tolerance)
    return f"{distance(left.cell_shares(), right.cell_shares()):.2f}"


def _rounded(spread: float) -> str:
    return f"{spread:.2g}" if spread > 1e-9 else "0"


def latent(report: Tree) -> str:
    """Return the errors of the linear probes with most crystals."""
    study = from_json(ProbeStudy, report["probe"])
    size = max(s.n_train for s in study.scores)
    titles = [f"features ({size} training crystals)", f"MAE, {study.target}", "R²", "right order"]
    lines = [header(titles)]
    for name in dict.fromkeys(s.features for s in study.scores):
        cells = []
        for key in ("mae", "r2", "right_order"):
            mean, spread = study.mean(name, size, key)
            cells.append("–" if mean != mean else f"{number(mean)} ± {_rounded(spread)}")
        lines.append(line([name, *cells]))
    lines.append(line(["a constant", number(study.spread), "0", ""]))
    return page(report, lines)


def times(report: Tree) -> str:
    """Return what the full experiment takes of one thread, from the measured rates."""
    amounts, presets = report["amounts"], report["presets"]
    train, several = amounts["train"], amounts["compositions"]
    lines = [header(["what", *(f"`{name}`" for name in presets)])]
    rates = [f"{p['crystals_per_second']:.3g} crystals/s" for p in presets.values()]
    lines.append(line(["training at full size, measured", *rates]))
    rates = [f"{1000 * p['seconds_per_step']:.3g} ms" for p in presets.values()]
    lines.append(line(["a step of sampling one crystal, measured", *rates]))
    rows: dict[str, list[float]] = {}
    for name, rate in presets.items():
        own = amounts[name]
        once = own["epochs"] * train / rate["crystals_per_second"]
        less = own["ablation_epochs"] * train / rate["crystals_per_second"]
        walk = several * own["steps"] * rate["seconds_per_step"]
        seeds, epochs = amounts["seeds"], own["epochs"]
        for what, seconds in (
            (f"a training of {epochs} epochs (Tables 2 and 3, one seed)", once),
            (f"{several} crystals sampled by one model", walk),
            (f"Tables 2 and 3, {seeds} seeds", seeds * (once + walk)),
            (f"a training of {own['ablation_epochs']} epochs (Table 4)", less),
            (
                f"Table 4, {amounts['ablation_seeds']} seeds",
                own["ablation_trainings"] * less + own["ablation_samples"] * walk,
            ),
        ):
            rows.setdefault(what, []).append(seconds)
    lines += [line([what, *map(_duration, row)]) for what, row in rows.items()]
    return page(report, lines)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} s"
