"""Energies per atom by a model, and elemental references that turn them into formation energies.

E_form = E − Σ x_e μ_e, with μ fitted by least squares against known formation energies.
"""

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.distances import EmdResult, earth_movers_distance
from crystal_fidelity.features import Identity
from crystal_fidelity.files import write_atomic
from crystal_fidelity.scores import Progress, silent
from crystal_fidelity.structures import (
    MAX_ATOMIC_NUMBER,
    Crystal,
    as_entries,
    element_symbol,
    to_atoms,
)

RIDGE = 1e-6
SHIPPED_REFERENCES = "chgnet_references.json"


@runtime_checkable
class EnergyModel(Protocol):
    """A map from crystals to energies."""

    identity: Identity
    """What makes the energies."""

    def energies(self, structures: Sequence[object]) -> NDArray[np.float64]:
        """Return eV/atom, NaN where the model cannot tell.

        Args:
            structures: Crystals, failures, pymatgen structures or ASE atoms.
        """
        ...


@dataclass(frozen=True)
class References:
    """Chemical potentials in eV per atom of each element, and how well they do."""

    potentials: Mapping[str, float]
    model: str
    """Identity of the energy model they belong to."""
    fitted_on: str
    n_fit: int
    held_out_mae: float
    """eV/atom on structures that took no part in the fit."""
    n_held_out: int

    def save(self, path: str | Path) -> None:
        """Write as JSON.

        Args:
            path: The file.
        """
        write_atomic(path, json.dumps(self.__dict__, indent=1) + "\n")


def load_references(path: str | Path | None = None) -> References:
    """Read references, the shipped ones for CHGNet without a path.

    Args:
        path: As `References.save` wrote it.

    Raises:
        ValueError: the file is not references as `References.save` writes them.
    """
    source = Path(path) if path else resources.files("crystal_fidelity") / SHIPPED_REFERENCES
    try:
        found = References(**json.loads(source.read_text(encoding="utf-8")))
        potentials = {symbol: float(value) for symbol, value in found.potentials.items()}
        if not all(map(math.isfinite, potentials.values())):
            raise ValueError("chemical potentials must be finite")
        return References(
            potentials,
            str(found.model),
            str(found.fitted_on),
            int(found.n_fit),
            float(found.held_out_mae),
            int(found.n_held_out),
        )
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{source} does not hold elemental references: {error}") from error


def composition_matrix(crystals: Sequence[Crystal]) -> NDArray[np.float64]:
    """Return (crystals, 119) atomic fractions, column Z.

    Args:
        crystals: A row each.
    """
    rows = np.zeros((len(crystals), MAX_ATOMIC_NUMBER + 1))
    for row, crystal in zip(rows, crystals, strict=True):
        np.add.at(row, crystal.atomic_numbers, 1 / len(crystal))
    return rows


def fit_potentials(
    crystals: Sequence[Crystal],
    energies: NDArray[np.float64],
    formation_energies: NDArray[np.float64],
) -> dict[str, float]:
    """Fit μ so that energies − x·μ follow the formation energies (eV/atom), least squares.

    Elements that do not occur get no potential.

    Args:
        crystals: The structures.
        energies: (crystals,), eV/atom.
        formation_energies: (crystals,), eV/atom.

    Returns:
        eV per atom by chemical symbol.
    """
    fractions = composition_matrix(crystals)
    present = np.nonzero(fractions.any(axis=0))[0]
    design = fractions[:, present]
    normal = design.T @ design + RIDGE * np.eye(len(present))
    potentials = np.linalg.solve(normal, design.T @ (energies - formation_energies))
    return {element_symbol(int(z)): float(mu) for z, mu in zip(present, potentials, strict=True)}


def formation_energies(
    structures: Sequence[object], energies: NDArray[np.float64], potentials: Mapping[str, float]
) -> NDArray[np.float64]:
    """Return formation energies E − Σ x_e μ_e.

    Args:
        structures: Crystals, read failures, pymatgen structures or ASE atoms.
        energies: (structures,), eV/atom.
        potentials: eV per atom by chemical symbol.

    Returns:
        (structures,), eV/atom; NaN where an element has no potential.
    """
    table = np.full(MAX_ATOMIC_NUMBER + 1, np.nan)
    for z in range(1, MAX_ATOMIC_NUMBER + 1):
        table[z] = potentials.get(element_symbol(z), np.nan)
    entries = as_entries(structures)
    shifts = [table[e.atomic_numbers].mean() if isinstance(e, Crystal) else np.nan for e in entries]
    return np.asarray(energies, dtype=np.float64) - np.array(shifts)


class AseEnergies:
    """Energies by any ASE calculator, named as `module:factory`.

    The factory is called without arguments and returns a calculator; what it raises for one
    structure makes that one NaN.

    Args:
        factory_path: Module and function.

    Raises:
        ValueError: The name is not `module:factory`, or there is no such thing.
    """

    def __init__(self, factory_path: str) -> None:
        module, _, name = factory_path.partition(":")
        if not name:
            raise ValueError(f"{factory_path!r}: name a factory as module:function")
        try:
            factory = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{factory_path!r} cannot be imported: {error}") from error
        self._calculator: Any = factory()
        self.identity = Identity(factory_path, "unknown", "of the calculator")
        self.failures: dict[str, str] = {}

    def energies(self, structures: Sequence[object]) -> NDArray[np.float64]:
        """Return eV/atom, NaN for failures, whose reasons are in `failures` by name.

        Args:
            structures: Crystals, failures, pymatgen structures or ASE atoms.
        """
        return np.array([self._energy(entry) for entry in as_entries(structures)])

    def _energy(self, entry: object) -> float:
        if not isinstance(entry, Crystal):
            return float("nan")
        atoms = to_atoms(entry)
        atoms.calc = self._calculator
        try:
            return float(atoms.get_potential_energy()) / len(entry)
        except Exception as error:  # noqa: BLE001 - a foreign calculator may raise anything
            self.failures[entry.name] = f"{type(error).__name__}: {str(error)[:120]}"
            return float("nan")


def model_energy_emd(
    generated: Sequence[object],
    reference: Sequence[object],
    model: EnergyModel,
    *,
    references: References | None = None,
    seed: int = 0,
) -> EmdResult:
    """Return the earth mover's distance of model energies per atom of two sets.

    Args:
        generated: Crystals, read failures, pymatgen structures or ASE atoms.
        reference: The same.
        model: What gives energies; structures are not relaxed.
        references: Elemental references of the model: with them formation energies are compared,
            without total energies.
        seed: Of the random parts that give floor and error.

    Raises:
        ValueError: The references belong to another model, or a set has no finite energy.
    """
    values = [model.energies(generated), model.energies(reference)]
    what = "total energies"
    if references is not None:
        if references.model != str(model.identity):
            raise ValueError(
                f"elemental references of ({references.model}) do not fit energies of "
                f"({model.identity}); fit them for this model or leave them out"
            )
        what = f"formation energies (held-out MAE {references.held_out_mae:.3f} eV/atom)"
        values = [
            formation_energies(structures, energies, references.potentials)
            for structures, energies in zip((generated, reference), values, strict=True)
        ]
    return earth_movers_distance(
        values[0],
        values[1],
        name="energy EMD",
        unit="eV/atom",
        protocol=f"all samples, unrelaxed; {what} by {model.identity}",
        seed=seed,
    )


def above_hull(
    structures: Sequence[object],
    energies: NDArray[np.float64],
    phases: Sequence[object],
    phase_energies: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return energies above the convex hull of known phases.

    The hull at a composition x is the cheapest mixture of phases that makes it: min Σ w_i E_i with
    Σ w_i x_i = x and w ≥ 0, a linear programme. Structures below the hull have a negative value.

    Args:
        structures: Crystals, read failures, pymatgen structures or ASE atoms.
        energies: (structures,), eV/atom, NaN unknown.
        phases: The known phases, likewise.
        phase_energies: (phases,), eV/atom by the same model; phases with NaN are left out.

    Returns:
        (structures,), eV/atom; NaN where the energy is unknown or no mixture has the composition.
    """
    from scipy.optimize import linprog

    pairs = zip(as_entries(phases), phase_energies, strict=True)
    known = [(c, float(e)) for c, e in pairs if isinstance(c, Crystal) and np.isfinite(e)]
    fractions, costs = composition_matrix([c for c, _ in known]), np.array([e for _, e in known])
    hull: dict[object, float] = {}
    result = np.full(len(structures), np.nan)
    for place, entry in enumerate(as_entries(structures)):
        if not isinstance(entry, Crystal) or not np.isfinite(energies[place]):
            continue
        if entry.formula not in hull:
            wanted = composition_matrix([entry])[0]
            inside = ~fractions[:, wanted == 0].any(1)
            mixture = (
                linprog(
                    costs[inside], A_eq=fractions[inside][:, wanted > 0].T, b_eq=wanted[wanted > 0]
                )
                if inside.any()
                else None
            )
            hull[entry.formula] = mixture.fun if mixture and mixture.success else float("nan")
        result[place] = energies[place] - hull[entry.formula]
    return result


def make_energy_model(
    name: str, *, cache: Path | None = None, on_progress: Progress = silent
) -> EnergyModel:
    """Return an energy model by name.

    Args:
        name: "chgnet", or the `module:factory` of an ASE calculator.
        cache: Folder of cached energies, for CHGNet; None is the default folder.
        on_progress: Called with what is being done.

    Raises:
        ImportError: chgnet is not installed.
        ValueError: The factory cannot be imported.
    """
    if name == "chgnet":
        from crystal_fidelity.features.chgnet import ChgnetModel

        return ChgnetModel(cache, on_progress=on_progress)
    return AseEnergies(name)
