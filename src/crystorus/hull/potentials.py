"""Interatomic potentials by name, one interface to all of them: many structures per call.

CHGNet and SevenNet are evaluated here for a list of structures at once, a model of torch-sim
likewise; whatever else is an ASE calculator is called for one after the other.
"""

import contextlib
import functools
import hashlib
import importlib
import io
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from crystorus.errors import CalculatorError
from crystorus.hull.options import POTENTIALS, check_potential_module

PROPERTIES = ("energy", "forces", "stress")
Results = dict[str, Any]
"""Energy in eV, forces in eV/Å [atoms, 3], stress in eV/Å³ (Voigt's order, ASE's sign) [6]."""


class BatchCalculator(Calculator):
    """An ASE calculator that answers for many structures at once.

    Args:
        evaluate: Returns the results of every structure it is given.
        model: The torch module, for the digest of its weights.
    """

    implemented_properties = PROPERTIES

    def __init__(self, evaluate: Callable[[Sequence[Atoms]], list[Results]], model: Any) -> None:
        super().__init__()
        self.evaluate, self.model = evaluate, model

    def calculate(
        self, atoms: Atoms | None = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        """Evaluate one structure.

        Args:
            atoms: The structure.
            properties: Not read: all are computed.
            system_changes: What changed since the last call, as ASE has it.
        """
        super().calculate(atoms, properties, system_changes)
        (self.results,) = self.evaluate([self.atoms])


@functools.lru_cache(maxsize=4)
def load_potential(potential: str) -> BaseCalculator:
    """Return the calculator of a potential, made once per process.

    Args:
        potential: A name of `POTENTIALS`, or "module:factory" whose call without arguments gives an
            ASE calculator or a model of torch-sim. Modules in the working folder are found too.

    Raises:
        CalculatorError: If it cannot be imported or made.
    """
    check_potential_module(potential)
    named = POTENTIALS.get(potential)
    # On import and on loading they print lines that belong to no table.
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if named:
                return _MAKERS[named.module](*named.model)
            module, _, name = potential.partition(":")
            found = getattr(importlib.import_module(module), name)()
            if _is_torch_sim(found):
                return _torch_sim(found)
    except Exception as error:
        remedy = "install it where every worker runs, or correct the path"
        if named:
            remedy = f"pip install 'crystorus[{named.extra}]', or name another"
        raise CalculatorError(
            f"--potential {potential} cannot be had ({short(error)}): {remedy}"
        ) from error
    if not isinstance(found, BaseCalculator):
        raise CalculatorError(
            f"--potential {potential} gave a {type(found).__name__}, which is neither an ASE "
            "calculator nor a model of torch-sim: name a function that returns one"
        )
    return found


@functools.lru_cache(maxsize=8)
def energy_level(potential: str, pressure: float = 0.0) -> str:
    """Return what makes the energies: potential, version, digest of the weights, pressure in GPa.

    Energies of two levels are never mixed unasked. The potential is loaded; where it cannot be, as
    on the head node of a cluster, there is no digest.

    Args:
        potential: As of `--potential`.
        pressure: GPa.
    """
    named = POTENTIALS.get(potential)
    module = named.module if named else potential.partition(":")[0]
    package = module.partition(".")[0]
    name = packages_distributions().get(package, [package])[0]
    try:
        found = [f"{name} {version(name)}"]
    except PackageNotFoundError:
        found = [f"{name} of unknown version"]
    with contextlib.suppress(CalculatorError):
        if digest := weights_digest(load_potential(potential)):
            found.append(f"weights {digest}")
    if pressure:
        found.append(f"enthalpy at {pressure:g} GPa")
    return f"{named.label if named else potential} ({', '.join(found)})"


def weights_digest(calculator: BaseCalculator) -> str:
    """Return the first 12 hex digits of the SHA-256 of a potential's weights.

    All tensors of the torch modules among the calculator's attributes count, in the order of their
    names; empty for a calculator without any.

    Args:
        calculator: ASE's interface.
    """
    from torch import nn

    held = [
        module
        for value in vars(calculator).values()
        for module in (value if isinstance(value, (list, tuple)) else [value])
        if isinstance(module, nn.Module)
    ]
    total = hashlib.sha256()
    for module in held:
        for name, tensor in sorted(module.state_dict().items()):
            if hasattr(tensor, "detach"):
                total.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()[:12] if held else ""


def evaluate(
    calculator: BaseCalculator, structures: Sequence[Atoms], wanted: Sequence[str] = PROPERTIES
) -> list[Results | Exception]:
    """Return the results of every structure, or what the potential threw.

    A call that fails is divided, so that one bad structure spoils no other, and a batch that is
    too large for the memory becomes several.

    Args:
        calculator: From `load_potential`.
        structures: Periodic and without constraints.
        wanted: Of `PROPERTIES`.
    """
    try:
        if isinstance(calculator, BatchCalculator):
            return list(calculator.evaluate(structures))
        return [{name: calculator.get_property(name, one) for name in wanted} for one in structures]
    except Exception as error:  # noqa: BLE001 - a foreign program may raise anything
        if len(structures) == 1:
            return [error]
        half = len(structures) // 2
        parts = structures[:half], structures[half:]
        return [found for part in parts for found in evaluate(calculator, part, wanted)]


def short(error: Exception) -> str:
    """Return an exception in at most a line.

    Args:
        error: What a calculator raised.
    """
    return f"{type(error).__name__}: {str(error)[:120]}"


def _chgnet() -> BaseCalculator:
    """Return CHGNet with one backward pass for forces and stress of a whole batch.

    CHGNet's own calculator differentiates twice and keeps the graph of the derivatives, which only
    training needs.
    """
    import torch
    from chgnet.model.dynamics import CHGNetCalculator
    from chgnet.model.model import BatchedGraph
    from pymatgen.io.ase import AseAtomsAdaptor

    own = CHGNetCalculator(on_isolated_atoms="error")
    model, device = own.model.requires_grad_(False), own.device

    def evaluate(structures: Sequence[Atoms]) -> list[Results]:
        crystals = map(AseAtomsAdaptor.get_structure, structures)
        graphs = [model.graph_converter(crystal).to(device) for crystal in crystals]
        batch = BatchedGraph.from_graphs(
            graphs,
            bond_basis_expansion=model.bond_basis_expansion,
            angle_basis_expansion=model.angle_basis_expansion,
            compute_stress=True,
        )
        n_atoms = torch.bincount(batch.atom_owners) if model.is_intensive else 1
        energy = model._compute(batch)["e"] * n_atoms
        gradients = torch.autograd.grad(energy.sum(), [*batch.atom_positions, *batch.strains])
        if model.composition_model is not None:
            energy = energy + model.composition_model(graphs) * n_atoms
        slopes = [g.cpu().double().numpy() for g in gradients]
        n = len(structures)
        stress = [
            full_3x3_to_voigt_6_stress(slope / atoms.get_volume())
            for slope, atoms in zip(slopes[n:], structures, strict=True)
        ]
        forces = -np.concatenate(slopes[:n])
        return _per_structure(structures, energy.detach().cpu().tolist(), forces, stress)

    return BatchCalculator(evaluate, model)


def _sevennet(model: str, modal: str | None = None) -> BaseCalculator:
    """Return a potential that the wheel of sevenn carries, for a batch; some have several heads."""
    from sevenn import _keys as keys
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.calculator import SevenNetCalculator
    from sevenn.train.dataload import unlabeled_atoms_to_graph
    from torch_geometric.data import Batch

    own = SevenNetCalculator(model, modal=modal)
    own.model.set_is_batch_data(True)

    def evaluate(structures: Sequence[Atoms]) -> list[Results]:
        graphs = []
        for atoms in structures:
            own.set_atoms(atoms)  # throws on an element that it does not know
            graph = AtomGraphData.from_numpy_dict(unlabeled_atoms_to_graph(atoms, own.cutoff))
            if modal:
                graph[keys.DATA_MODALITY] = modal
            graphs.append(graph)
        found = own.model(Batch.from_data_list(graphs).to(own.device))
        energies = found[keys.PRED_TOTAL_ENERGY].detach().cpu().double().numpy().ravel()
        forces = found[keys.PRED_FORCE].detach().cpu().double().numpy()
        stress = -found[keys.PRED_STRESS].detach().cpu().double().numpy().reshape(-1, 6)
        return _per_structure(structures, energies, forces, stress[:, [0, 1, 2, 4, 5, 3]])

    return BatchCalculator(evaluate, own.model)


def _mace(model: str) -> BaseCalculator:
    from mace.calculators import mace_mp

    return mace_mp(model=model, default_dtype="float64")


def _orb(model: str) -> BaseCalculator:
    import torch
    from orb_models.forcefield import pretrained
    from orb_models.forcefield.inference.calculator import ORBCalculator

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network, adapter = getattr(pretrained, model)(device=device)
    return ORBCalculator(network, atoms_adapter=adapter, device=device)


def _mattersim() -> BaseCalculator:
    from mattersim.forcefield import MatterSimCalculator

    return MatterSimCalculator()


_MAKERS: dict[str, Callable[..., BaseCalculator]] = {
    "chgnet": _chgnet,
    "sevenn": _sevennet,
    "mace": _mace,
    "orb_models": _orb,
    "mattersim": _mattersim,
}
"""What makes the potentials of a module from the `model` of `POTENTIALS`."""


def _is_torch_sim(found: object) -> bool:
    return any(c.__module__.startswith("torch_sim.") for c in type(found).__mro__)


def _torch_sim(model: Any) -> BaseCalculator:
    """Return a model of torch-sim as a calculator; on a GPU it takes whole batches."""
    import torch_sim

    def evaluate(structures: Sequence[Atoms]) -> list[Results]:
        state = torch_sim.initialize_state(list(structures), model.device, model.dtype)
        found = {k: v.detach().cpu().double().numpy() for k, v in model(state).items()}
        stress = [full_3x3_to_voigt_6_stress(one) for one in found["stress"]]
        return _per_structure(structures, found["energy"], found["forces"], stress)

    return BatchCalculator(evaluate, model)


def _per_structure(
    structures: Sequence[Atoms], energies: Any, forces: np.ndarray, stress: Any
) -> list[Results]:
    """Divide the results of a batch, energies [n], forces [atoms of all, 3], stress [n, 6]."""
    cuts = np.cumsum([len(atoms) for atoms in structures])[:-1]
    return [
        {"energy": float(e), "forces": f, "stress": np.asarray(s)}
        for e, f, s in zip(energies, np.split(forces, cuts), stress, strict=True)
    ]
