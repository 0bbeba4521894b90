"""Known phases found against processor time, from several starts, with one potential for all.

    python benchmarks/recall.py --train train.csv --validation val.csv --library mp20.templates \\
        --systems 12 --seconds 60 --out recall

Systems of two to four elements are drawn by a seed, in turn from oxides, sulphides, halides and
intermetallics, without lanthanides, actinides and noble gases, with at most 20 training crystals
that relax fast. Sought are up to two phases of validation in each, of different formulas and with
all its elements, that no training crystal matches. Formula and cell size are given, the structure
is not. Arms: `templates` (sampling from the prototypes of training crystals), `substitution` (these
as they are, without the model), `symmetric noise` (inside space groups), `free noise`, `both`
(templates and symmetric noise in turn; noise with `--quality fast`), and `random` (PyXtal: random
space groups that the composition allows, PyXtal's own volume; `pip install pyxtal`). All have the
same potential, limits, removal of near-duplicates before relaxation and matcher, and the same
processor seconds per phase: sampling, comparing and relaxing count; loading programs and relaxing
references and sought phases, the same for all, do not. A search ends where its phase is found.

`searches.csv` has a row per phase and arm; `recall.csv` and `recall.svg` have the curves: recall,
averaged over systems with its standard error, against processor seconds per phase; what is printed
at the end are processor times of equal recall, with errors from a bootstrap over systems. The run
goes on where it was stopped; more `--systems` add to it.
"""

import argparse
import csv
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from pymatgen.core import Composition

import crystorus
from crystal_fidelity.cells import niggli_reduce
from crystal_fidelity.structures import from_pymatgen, to_atoms
from crystorus.data.compositions import Composition as Cell
from crystorus.data.compositions import parse_formula
from crystorus.hull.candidates import structures_of
from crystorus.hull.matching import NEAR, Comparable, StructureIndex
from crystorus.hull.options import RelaxSettings
from crystorus.hull.potentials import energy_level
from crystorus.hull.rank import Hull, Phase
from crystorus.hull.relax import RelaxJob, RelaxOutcome, relax, screen
from crystorus.sample.options import SampleOptions
from crystorus.sample.requests import make_requests
from crystorus.sample.sampler import GeneratedCrystals, make, plan_sampling

STARTS = {
    "templates": {"start": "templates"},
    "substitution": {"start": "templates", "level": 0.0},
    "symmetric noise": {"start": "noise", "quality": "fast"},
    "free noise": {"start": "noise", "quality": "fast", "space_group": "none"},
    "both": {"start": "both", "quality": "fast"},
}
RANDOM = "random"
ARMS = (*STARTS, RANDOM)
ABOVE = (0.0, 0.025, 0.1)
"""eV/atom above the hull of training crystals, up to which phases are sought."""
HALOGENS = {"F", "Cl", "Br", "I"}
NONMETALS = HALOGENS | {"H", "B", "C", "N", "O", "P", "S", "Se"}
LEFT_OUT = {2, 10, 18, 36, 54, *range(57, 72), *range(84, 119)}
MOST_PHASES, MOST_REFERENCES = 2, 20
MOST_CRYSTALS, CHUNK = 512, 8
"""Of one search, and of one call of the model."""
LEVELS = (0.25, 0.5, 0.75)
"""Of recall, at which processor times are compared."""
HEADER = ["system", "class", "phase", "cell", "e_above_hull", "arm", "found", "seconds", "made",
          "relaxed"]  # fmt: skip


Named = list[tuple[str, Atoms]]


class System(NamedTuple):
    """A chemical system with the phases that are sought in it, and its references."""

    kind: str
    elements: list[str]
    sought: Named
    references: Named


def kind_of(elements: Sequence[str]) -> str:
    """Return the class of a chemical system, empty for one that is not drawn."""
    present = set(elements)
    if {atomic_numbers[e] for e in present} & LEFT_OUT:
        return ""
    if not present & NONMETALS:
        return "intermetallic"
    named = {"oxide": {"O"}, "sulphide": {"S"}, "halide": HALOGENS}
    found = [kind for kind, anions in named.items() if present & anions]
    return found[0] if len(found) == 1 else ""


def systems_of(path: Path) -> Counter[tuple[str, ...]]:
    """Count the sorted elements of the rows of a table with a column `pretty_formula`."""
    with path.open() as text:
        formulas = Counter(row["pretty_formula"] for row in csv.DictReader(text))
    found = Counter[tuple[str, ...]]()
    for formula, times in formulas.items():
        found[tuple(sorted(parse_formula(formula).elements))] += times
    return found


def draw_systems(args: argparse.Namespace) -> Iterator[System]:
    """Yield systems in which something is sought, one of every class and size in turn."""
    random = np.random.default_rng(args.seed)
    train = systems_of(args.train)
    pools: dict[tuple[str, int], list[tuple[str, ...]]] = {}
    for elements in sorted(systems_of(args.validation)):
        subsets = (s for n in range(1, len(elements) + 1) for s in combinations(elements, n))
        if (
            2 <= len(elements) <= 4
            and (kind := kind_of(elements))
            and all(train[e,] for e in elements)
            and sum(train[s] for s in subsets) <= MOST_REFERENCES
        ):
            pools.setdefault((kind, len(elements)), []).append(elements)
    for pool in pools.values():
        random.shuffle(pool)
    while any(pools.values()):
        for (kind, _), pool in sorted(pools.items()):
            while pool:
                elements = list(pool.pop())
                sought, references = sought_in(elements, args)
                if sought:
                    yield System(kind, elements, sought, references)
                    break


def sought_in(elements: Sequence[str], args: argparse.Namespace) -> tuple[Named, Named]:
    """Return the phases sought in a system, and its references."""
    train = [(o.details["id"], o.atoms) for o in structures_of(args.train, "", "", within=elements)]
    index, found, taken = StructureIndex(), Named(), set[str]()
    for name, atoms in train:
        index.add(name, Comparable.of(atoms))
    for one in structures_of(args.validation, "", "", within=elements):
        if set(one.atoms.symbols) == set(elements) and len(one.atoms) <= args.max_atoms:
            shape = Comparable.of(one.atoms)
            if shape.formula not in taken and not index.find(shape):
                taken.add(shape.formula)
                found.append((one.details["id"], one.atoms))
    return found[:MOST_PHASES], train


def sampled(arm: str, atoms: Atoms, args: argparse.Namespace) -> Iterator[Atoms]:
    """Yield crystals of a cell's composition from the model; without templates left, none."""
    cell, options = Cell.of(atoms.numbers.tolist()), SampleOptions(**STARTS[arm])
    library = args.opened if options.needs_library else None
    wanted = make_requests([cell], n=MOST_CRYSTALS, seed=args.seed)
    requests, plan = plan_sampling(args.model, wanted, options, library=library)
    if options.start_from == "templates":
        # Where templates run out, `crystorus sample` goes on from noise: that is another arm.
        requests = tuple(request for request in requests if request.start is not None)
    for first in range(0, len(requests), CHUNK):
        made = make(args.model, requests[first : first + CHUNK], plan)
        yield from GeneratedCrystals.concat(list(made)).to_ase()


def random_crystals(atoms: Atoms, seed: int) -> Iterator[Atoms]:
    """Yield crystals of a primitive cell's composition in random space groups, by PyXtal."""
    from pyxtal import pyxtal

    random = np.random.default_rng(seed)
    counts = {str(s): int((atoms.symbols == s).sum()) for s in dict.fromkeys(atoms.symbols)}
    while True:
        crystal, group = pyxtal(), int(random.integers(1, 231))
        try:
            crystal.from_random(3, group, list(counts), list(counts.values()), random_state=random,
                                conventional=False)  # fmt: skip
        except Exception:  # noqa: BLE001 - the group's sites cannot hold the composition
            yield Atoms()  # so that the time is looked at
            continue
        if crystal.valid:
            primitive = crystal.to_pymatgen().get_primitive_structure()
            yield to_atoms(niggli_reduce(from_pymatgen(primitive)))


def search(
    arm: str, atoms: Atoms, wanted: Comparable, args: argparse.Namespace
) -> tuple[bool, float, int, int]:
    """Sample and relax until a phase is found or the time is over.

    Returns:
        Whether it is found, processor seconds, and how many crystals were made and relaxed.
    """
    target, near, made, relaxed = StructureIndex(), StructureIndex(NEAR), 0, 0
    target.add("sought", wanted)
    began = time.process_time()
    crystals = random_crystals(atoms, args.seed) if arm == RANDOM else sampled(arm, atoms, args)
    for crystal in crystals:
        if time.process_time() - began > args.seconds:
            break
        if not crystal:
            continue
        made += 1
        if screen(crystal, args.settings.screen) or near.find(shape := Comparable.of(crystal)):
            continue
        near.add("near", shape)
        outcome = relax(RelaxJob(0, crystal, args.settings))
        relaxed += 1
        if outcome.energy is not None and target.find(Comparable.of(outcome.atoms)):
            return True, time.process_time() - began, made, relaxed
    return False, time.process_time() - began, made, relaxed


def run_system(drawn: System, args: argparse.Namespace) -> None:
    """Make every search of a system that is not done; append a row of each to the table."""
    kind, elements, sought, references = drawn
    system, table = "-".join(elements), args.out / "searches.csv"
    done = {(row["phase"], row["arm"]) for row in rows_of(table)}
    if all((name, arm) in done for name, _ in sought for arm in args.arms):
        return
    known = args.out / "relaxed.json"
    energies = json.loads(known.read_text()) if known.exists() else {}
    for name, atoms in references:
        if name not in energies:
            outcome = relax(RelaxJob(0, atoms, args.settings))
            energies[name] = None if outcome.energy is None else per_atom(outcome)
            known.write_text(json.dumps(energies))
    phases = [
        Phase(name, Composition(str(atoms.symbols)), energies[name])
        for name, atoms in references
        if energies[name] is not None
    ]
    hull = Hull(phases, elements)
    for name, atoms in sought:
        outcome = relax(RelaxJob(0, atoms, args.settings))
        if outcome.energy is None:
            print(f"{system} {name} cannot be relaxed and is not sought: {outcome.reason}")
            continue
        formula = str(atoms.symbols)
        above = hull.energy_above(Phase("", Composition(formula), per_atom(outcome)))
        wanted = Comparable.of(outcome.atoms)
        for arm in args.arms:
            if (name, arm) not in done:
                found, seconds, made, relaxed = search(arm, atoms, wanted, args)
                row = [system, kind, name, formula, f"{above:.4f}", arm, int(found),
                       f"{seconds:.2f}", made, relaxed]  # fmt: skip
                append(table, HEADER, [row])
                print(*row, flush=True)


def per_atom(outcome: RelaxOutcome) -> float:
    return outcome.atoms.get_potential_energy() / len(outcome.atoms)


def rows_of(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.open())) if table.exists() else []


def append(path: Path, header: list[str], rows: list[list]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as text:
        csv.writer(text).writerows([header, *rows] if fresh else rows)


def recalls(rows: list[dict[str, str]], times: np.ndarray) -> np.ndarray:
    """Return the share of its phases found in every system, [systems, times]."""
    result = []
    for system in dict.fromkeys(row["system"] for row in rows):
        own = [row for row in rows if row["system"] == system]
        when = [float(row["seconds"]) if int(row["found"]) else np.inf for row in own]
        result.append(np.mean([times >= t for t in when], axis=0))
    return np.array(result)


def summarise(args: argparse.Namespace) -> None:
    """Write the curves and their picture; print the times of equal recall."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "recall"
    rows, times = rows_of(args.out / "searches.csv"), np.geomspace(0.1, args.seconds, 400)
    arms = [arm for arm in ARMS if any(row["arm"] == arm for row in rows)]
    # A system that is being searched counts when every arm has been there.
    full = Counter(row["phase"] for row in rows)
    unfinished = {row["system"] for row in rows if full[row["phase"]] < len(arms)}
    rows = [row for row in rows if row["system"] not in unfinished]
    if not rows:
        return
    figure, axes = plt.subplots(1, len(ABOVE), figsize=(11, 4.2), sharey=True, layout="constrained")
    lines = []
    for axis, limit in zip(axes, ABOVE, strict=True):
        within = [row for row in rows if float(row["e_above_hull"]) <= limit]
        for arm in arms:
            each = recalls([row for row in within if row["arm"] == arm], times)
            if not len(each):
                continue
            mean = each.mean(axis=0)
            error = each.std(axis=0, ddof=min(1, len(each) - 1)) / len(each) ** 0.5
            steps = np.flatnonzero(np.any(np.diff(each, prepend=-1), axis=0))
            curve = np.array([times, mean, error])[:, [*steps, -1]]
            at, mean, error = curve
            (line,) = axis.step(at, mean, where="post", label=arm)
            axis.fill_between(at, mean - error, mean + error, step="post", alpha=0.12,
                              color=line.get_color(), linewidth=0)  # fmt: skip
            lines += [[arm, limit, *(f"{x:.4g}" for x in point)] for point in curve.T]
        phases = {(row["system"], row["phase"]) for row in within}
        axis.set(xscale="log", xlabel="processor seconds per phase", ylim=(0, 1.02),
                 xlim=(times[0], times[-1]),
                 title=f"{len(phases)} phases of {len({s for s, _ in phases})} systems\n"
                 f"up to {1000 * limit:g} meV/atom above the hull")  # fmt: skip
    axes[0].set_ylabel("recall")
    handles = axes[-1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(arms))
    figure.savefig(args.out / "recall.svg", metadata={"Date": None})
    plt.close(figure)
    (args.out / "recall.csv").unlink(missing_ok=True)
    append(args.out / "recall.csv", ["arm", "e_above_hull_up_to", "seconds_per_phase", "recall",
                                     "standard_error"], lines)  # fmt: skip
    compare(rows, arms, args.seconds)


def compare(rows: list[dict[str, str]], arms: list[str], budget: float) -> None:
    """Print final recall of every arm, and how much longer random crystals take for as much."""
    times = np.geomspace(0.01, budget, 2000)
    each = {arm: recalls([row for row in rows if row["arm"] == arm], times) for arm in arms}
    systems = len(each[arms[0]])
    draws = np.random.default_rng(0).integers(systems, size=(1000, systems))
    print(f"{systems} systems, {len({row['phase'] for row in rows})} phases")

    def reached(arm: str, chosen: np.ndarray, level: float) -> float:
        curve = each[arm][chosen].mean(axis=0)
        return float(times[np.argmax(curve >= level)]) if curve[-1] >= level else np.inf

    for arm in arms:
        last = each[arm][:, -1]
        print(f"{arm}: recall {last.mean():.2f} ± {last.std(ddof=1) / systems**0.5:.2f}", end="")
        for level in LEVELS:
            took, other = (reached(a, np.arange(systems), level) for a in (arm, RANDOM))
            if not np.isfinite(took):
                print(f"; {level:g} not reached", end="")
                continue
            print(f"; {level:g} in {took:.1f} s", end="")
            if arm == RANDOM or RANDOM not in arms:
                continue
            # Beyond the budget nothing is known: a ratio to it is a lower bound.
            ratios = [min(reached(RANDOM, d, level), budget) / min(reached(arm, d, level), budget)
                      for d in draws]  # fmt: skip
            low, high = np.percentile(ratios, [16, 84])
            sign = "" if np.isfinite(other) else "at least "
            print(f", {sign}{min(other, budget) / took:.0f} times ({low:.0f} to {high:.0f}) "
                  "faster than random", end="")  # fmt: skip
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("recall"))
    parser.add_argument("--systems", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=60.0, help="processor, phase and arm")
    parser.add_argument("--max-atoms", type=int, default=12)
    parser.add_argument("--arms", default=",".join(ARMS), type=lambda text: text.split(","))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--potential", default="chgnet")
    parser.add_argument("--relax-steps", type=int, default=100)
    args = parser.parse_args()
    from crystorus.templates.library import open_library

    args.out.mkdir(parents=True, exist_ok=True)
    args.opened, args.model = open_library(args.library), crystorus.load()
    args.settings = RelaxSettings(potential=args.potential, steps=args.relax_steps)
    asked = {name: getattr(args, name) for name in ("seconds", "max_atoms", "seed", "relax_steps")}
    asked |= {"level": energy_level(args.potential), "weights": args.model.digest}
    recorded = args.out / "run.json"
    if recorded.exists() and json.loads(recorded.read_text()) != asked:
        raise SystemExit(f"{args.out} holds another run: choose another --out")
    recorded.write_text(json.dumps(asked, indent=1))
    for drawn in islice(draw_systems(args), args.systems):
        run_system(drawn, args)
    summarise(args)


if __name__ == "__main__":
    main()
