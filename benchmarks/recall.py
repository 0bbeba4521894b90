"""Known phases found against processor time, from several starts, with one potential for all.

    python benchmarks/recall.py --train train.csv --validation val.csv --library mp20.templates \\
        --systems 12 --crystals 4 --out recall

Systems are drawn by a seed from oxides, sulphides, halides and intermetallics of two to four
elements. Sought are up to two phases of validation, of different formulas, that no training
crystal matches; their formulas and cell sizes are given, the structures are not. Arms: `templates`
(sampling from the prototypes of training crystals), `substitution` (these as they are, without the
model), `noise` inside space groups, `free noise` (both `--quality fast`), and `random` (PyXtal: a
random space group that the composition allows, PyXtal's own volume; `pip install pyxtal`). All arms
have the same potential, limits, removal of near-duplicates before relaxation and matcher. Processor
time is that of sampling, comparing and relaxing; loading programs and relaxing the references, the
same for all, are left out.

`crystals.csv` has a row per crystal, `phases.csv` one per sought phase; `recall.csv` and
`recall.png` have the curves: recall, averaged over systems with its standard error, against
processor seconds per sought phase. The run goes on where it was stopped.
"""

import argparse
import csv
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from pymatgen.core import Composition

import crystorus
from crystal_fidelity.cells import niggli_reduce
from crystal_fidelity.structures import from_pymatgen, to_atoms
from crystorus.data.compositions import parse_formula
from crystorus.hull.candidates import structures_of
from crystorus.hull.matching import NEAR, Comparable, StructureIndex
from crystorus.hull.options import RelaxSettings
from crystorus.hull.potentials import energy_level
from crystorus.hull.rank import Hull, Phase
from crystorus.hull.relax import RelaxJob, RelaxOutcome, relax

ARMS = ("templates", "substitution", "noise", "free noise", "random")
ABOVE = (0.0, 0.025, 0.1)
"""eV/atom above the hull of training crystals, up to which phases are sought."""
HALOGENS, NONMETALS = (
    set(["F", "Cl", "Br", "I"]),
    set(["H", "B", "C", "N", "O", "F", "P", "S", "Cl", "Se", "Br", "I"]),
)
MOST_PHASES, MOST_REFERENCES = 2, 20


def kind_of(elements: Sequence[str]) -> str:
    """Return the class of a chemical system, empty for one that is not drawn."""
    present = set(elements)
    if not present & NONMETALS:
        return "intermetallic"
    named = {"oxide": {"O"}, "sulphide": {"S"}, "halide": HALOGENS}
    found = [kind for kind, anions in named.items() if present & anions]
    return found[0] if len(found) == 1 else ""


def columns(path: Path) -> Iterator[tuple[str, ...]]:
    """Yield the sorted elements of every row of a table with a column `pretty_formula`."""
    with path.open() as text:
        for row in csv.DictReader(text):
            yield tuple(sorted(parse_formula(row["pretty_formula"]).elements))


def draw_systems(args: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Yield systems with what is sought in them, one of every class and size in turn."""
    random = np.random.default_rng(args.seed)
    pools: dict[tuple[int, str], list[tuple[str, ...]]] = {}
    for elements in sorted(set(columns(args.validation))):
        if 2 <= len(elements) <= 4 and (kind := kind_of(elements)):
            pools.setdefault((len(elements), kind), []).append(elements)
    for pool in pools.values():
        random.shuffle(pool)
    kinds = ("oxide", "sulphide", "halide", "intermetallic")
    while True:
        for kind in kinds:
            for size in (2, 3, 4):
                while pool := pools.get((size, kind), []):
                    elements = list(pool.pop())
                    if sought_in(elements, args)[0]:
                        yield kind, elements
                        break


def sought_in(
    elements: Sequence[str], args: argparse.Namespace
) -> tuple[list[tuple[str, Atoms]], list[tuple[str, Atoms]]]:
    """Return the phases sought in a system, and its references; none where it does not serve."""
    train = [(o.name, o.atoms) for o in structures_of(args.train, "r", "t", within=elements)]
    covered = {str(a.symbols[0]) for _, a in train if len(set(a.symbols)) == 1}
    if covered != set(elements) or len(train) > MOST_REFERENCES:
        return [], []
    index, found, taken = StructureIndex(), list[tuple[str, Atoms]](), set[str]()
    for name, atoms in train:
        index.add(name, Comparable.of(atoms))
    for one in structures_of(args.validation, "r", "v", within=elements):
        if set(one.atoms.symbols) == set(elements) and len(one.atoms) <= args.max_atoms:
            shape = Comparable.of(one.atoms)
            if shape.formula not in taken and not index.find(shape):
                taken.add(shape.formula)
                found.append((one.name, one.atoms))
    return found[:MOST_PHASES], train


def make(arm: str, atoms: Atoms, args: argparse.Namespace, seed: int) -> Iterator[Atoms]:
    """Yield crystals of the composition of some atoms from one arm."""
    formula = Composition(str(atoms.symbols)).reduced_formula
    units = int(len(atoms) / Composition(formula).num_atoms)
    if arm == "random":
        yield from random_crystals(atoms, args.crystals, seed)
        return
    settings = {
        "templates": {"start": "templates", "library": args.opened},
        "substitution": {"start": "templates", "library": args.opened, "level": 0.0},
        "noise": {"start": "noise", "quality": "fast"},
        "free noise": {"start": "noise", "quality": "fast", "space_group": "none"},
    }[arm]
    made = crystorus.generate(
        formula, n=args.crystals, z=units, seed=seed, model=args.model, **settings
    )
    for one in made:
        # Where templates run out, `crystorus sample` goes on from noise: that is another arm.
        if "library" not in settings or one.requests[0].start is not None:
            yield one.to_ase()[0]


def random_crystals(atoms: Atoms, n: int, seed: int) -> Iterator[Atoms]:
    """Yield random crystals in random space groups, by PyXtal."""
    from pyxtal import pyxtal

    random = np.random.default_rng(seed)
    counts = {str(s): int((atoms.symbols == s).sum()) for s in dict.fromkeys(atoms.symbols)}
    made = 0
    while made < n:
        crystal, group = pyxtal(), int(random.integers(1, 231))
        try:
            crystal.from_random(3, group, list(counts), list(counts.values()), random_state=random)
        except Exception:  # noqa: BLE001 - the group's sites cannot hold the composition
            continue
        if crystal.valid:
            made += 1
            primitive = crystal.to_pymatgen().get_primitive_structure()
            yield to_atoms(niggli_reduce(from_pymatgen(primitive)))


def run_system(kind: str, elements: list[str], args: argparse.Namespace) -> None:
    """Relax references and sought phases, then the crystals of every arm; append to the tables."""
    system, settings = "-".join(elements), args.settings
    sought, references = sought_in(elements, args)
    known = args.out / "references" / f"{system}.json"
    if not known.exists():
        found = [relax(RelaxJob(0, atoms, settings)) for _, atoms in references]
        rows = [(str(o.atoms.symbols), o.enthalpy / len(o.atoms)) for o in found if o.energy]
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(json.dumps(rows))
    phases = [Phase(f, Composition(f), e) for f, e in json.loads(known.read_text())]
    hull = Hull(phases, elements)

    def above(outcome: RelaxOutcome) -> float:
        formula = Composition(str(outcome.atoms.symbols))
        return hull.energy_above(Phase("", formula, outcome.enthalpy / len(outcome.atoms)))

    index, rows = StructureIndex(), []
    for name, atoms in sought:
        outcome = relax(RelaxJob(0, atoms, settings))
        if outcome.energy is not None:
            index.add(name, Comparable.of(outcome.atoms))
            rows.append([system, kind, name, str(atoms.symbols), f"{above(outcome):.4f}"])
    append(args.out / "phases.csv", ["system", "class", "phase", "cell", "e_above_hull"], rows)
    header = [
        "system",
        "class",
        "arm",
        "turn",
        "cell",
        "seconds",
        "status",
        "e_above_hull",
        "phase",
    ]
    for arm in args.arms:
        rows, near = [], StructureIndex(NEAR)
        for turn_of, (_, atoms) in enumerate(sought):
            began = time.process_time()
            made = list(make(arm, atoms, args, args.seed + turn_of))
            each = (time.process_time() - began) / max(1, len(made))
            for turn, crystal in enumerate(made):
                began = time.process_time()
                shape = Comparable.of(crystal)
                status, energy, phase = "duplicate", "", ""
                if not near.find(shape):
                    near.add("", shape)
                    outcome = relax(RelaxJob(0, crystal, settings))
                    status = outcome.status
                    if outcome.energy is not None:
                        energy, phase = (
                            f"{above(outcome):.4f}",
                            index.find(Comparable.of(outcome.atoms)),
                        )
                seconds = each + time.process_time() - began
                rows.append([system, kind, arm, turn, str(crystal.symbols), f"{seconds:.3f}",
                             status, energy, phase])  # fmt: skip
        append(args.out / "crystals.csv", header, rows)
        print(system, arm, len(rows), len({r[-1] for r in rows} - {""}), "of", len(sought))


def append(path: Path, header: list[str], rows: list[list]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as text:
        csv.writer(text).writerows([header, *rows] if fresh else rows)


def curves(out: Path) -> dict[tuple[str, float], np.ndarray]:
    """Return the curves by arm and limit: seconds per phase, mean recall, its standard error.

    Every system contributes the crystals of an arm in turns: the first of every composition, then
    the second.
    """
    crystals = list(csv.DictReader((out / "crystals.csv").open()))
    phases = list(csv.DictReader((out / "phases.csv").open()))
    result = {}
    for arm in dict.fromkeys(row["arm"] for row in crystals):
        for limit in ABOVE:
            times, recalls = np.geomspace(0.1, 1000, 200), []
            for system in dict.fromkeys(row["system"] for row in phases):
                own = [p for p in phases if p["system"] == system]
                wanted = {p["phase"] for p in own if float(p["e_above_hull"]) <= limit}
                rows = [r for r in crystals if (r["system"], r["arm"]) == (system, arm)]
                if not wanted or not rows:
                    continue
                rows.sort(key=lambda r: int(r["turn"]))
                spent = np.cumsum([float(r["seconds"]) for r in rows]) / len(own)
                seen, share = set(), []
                for row in rows:
                    seen |= {row["phase"]} & wanted
                    share.append(len(seen) / len(wanted))
                place = np.searchsorted(spent, times, side="right")
                recalls.append(np.array([0.0, *share])[place])
            if recalls:
                mean = np.mean(recalls, axis=0)
                error = np.std(recalls, axis=0, ddof=min(1, len(recalls) - 1)) / len(recalls) ** 0.5
                result[arm, limit] = np.array([times, mean, error])
    return result


def draw(out: Path) -> None:
    """Write the curves and their picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    found = curves(out)
    rows = [
        [arm, limit, *(f"{x:.4g}" for x in point)]
        for (arm, limit), curve in found.items()
        for point in curve.T
    ]
    (out / "recall.csv").unlink(missing_ok=True)
    append(out / "recall.csv", ["arm", "e_above_hull_up_to", "seconds_per_phase", "recall",
                                "standard_error"], rows)  # fmt: skip
    figure, axes = plt.subplots(1, len(ABOVE), figsize=(12, 4), sharey=True)
    for axis, limit in zip(axes, ABOVE, strict=True):
        for arm in ARMS:
            if (arm, limit) in found:
                times, mean, error = found[arm, limit]
                (line,) = axis.step(times, mean, where="post", label=arm)
                axis.fill_between(times, mean - error, mean + error, step="post", alpha=0.15,
                                  color=line.get_color())  # fmt: skip
        axis.set(xscale="log", xlabel="processor seconds per sought phase", ylim=(0, 1),
                 title=f"phases up to {1000 * limit:g} meV/atom above the hull")  # fmt: skip
    axes[0].set_ylabel("recall")
    axes[-1].legend()
    figure.tight_layout()
    figure.savefig(out / "recall.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("recall"))
    parser.add_argument("--systems", type=int, default=12)
    parser.add_argument("--crystals", type=int, default=4, help="per sought phase and arm")
    parser.add_argument("--max-atoms", type=int, default=8)
    parser.add_argument("--arms", default=",".join(ARMS), type=lambda text: text.split(","))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--potential", default="chgnet")
    parser.add_argument("--relax-steps", type=int, default=100)
    args = parser.parse_args()
    from crystorus.templates.library import open_library

    args.out.mkdir(parents=True, exist_ok=True)
    args.opened, args.model = open_library(args.library), crystorus.load()
    args.settings = RelaxSettings(potential=args.potential, steps=args.relax_steps)
    asked = {
        k: str(v) for k, v in vars(args).items() if k in ("arms", "crystals", "max_atoms", "seed")
    }
    asked |= {"level": energy_level(args.potential), "weights": args.model.digest}
    recorded = args.out / "run.json"
    if recorded.exists() and json.loads(recorded.read_text()) != asked:
        raise SystemExit(f"{args.out} holds another run: choose another --out")
    recorded.write_text(json.dumps(asked, indent=1))
    done = finished(args.out, args.arms)
    for number, (kind, elements) in enumerate(draw_systems(args)):
        if number == args.systems:
            break
        if "-".join(elements) not in done:
            run_system(kind, elements, args)
            draw(args.out)


def finished(out: Path, arms: Sequence[str]) -> set[str]:
    """Return the systems that have every arm; take the rows of others out of both tables."""
    tables = [path for path in (out / "crystals.csv", out / "phases.csv") if path.exists()]
    if len(tables) < 2:
        for path in tables:
            path.unlink()
        return set()
    rows = [list(csv.reader(path.open())) for path in tables]
    seen = {(row[0], row[2]) for row in rows[0][1:]}
    done = {system for system, _ in seen if all((system, arm) in seen for arm in arms)}
    for path, (header, *own) in zip(tables, rows, strict=True):
        path.unlink()
        append(path, header, [row for row in own if row[0] in done])
    return done


if __name__ == "__main__":
    main()
