"""Fréchet ALIGNN features: the network in plain PyTorch, its graphs, and its published weights.

It needs neither the alignn package nor DGL. The feature of a crystal is the 256-d mean over atoms
that enters the last linear layer. The published file is a zip with pickles; it is read here without
running anything in it, and kept as safetensors with its digests.

Source: Choudhary and DeCost 2021, doi:10.1038/s41524-021-00650-1
"""

import hashlib
import io
import json
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crystal_fidelity.cells import face_distances
from crystal_fidelity.download import fetch
from crystal_fidelity.features import CachedRows, FeatureSet, Identity, Limits, feature_set
from crystal_fidelity.files import atomic_path, file_digest
from crystal_fidelity.scores import Progress, silent
from crystal_fidelity.structures import Crystal

HIDDEN = 256
GraphMode = Literal["official", "tie-tolerant"]
CUTOFF = 8.0
MAX_NEIGHBOURS = 12
MIN_BOND = 0.15
"""Å; the official code drops closer pairs."""
TIE_TOLERANCE = 1e-4
"""Å."""
OFFICIAL_DECIMALS = 5
MAX_CANDIDATES = 200_000_000
CHUNK = 2_000_000
LIMITS = Limits(max_atomic_number=100, max_nearest_neighbour=float("inf"))
MAX_PAIRS = 40_000
"""Bond pairs per batch; each costs about 10 kB at the widest layer."""
BATCH = 64


# The crystal graph and its line graph


@dataclass(frozen=True)
class CrystalGraph:
    """Bonds u → v with displacement r, and pairs of bonds (a → b, b → c)."""

    atomic_numbers: NDArray[np.int64]
    sources: NDArray[np.int64]
    targets: NDArray[np.int64]
    displacements: NDArray[np.float64]
    """(bonds, 3), Å, from source to target."""
    first_bonds: NDArray[np.int64]
    """(pairs,), index of a → b; backtracking pairs are included."""
    second_bonds: NDArray[np.int64]


def build_graph(crystal: Crystal, mode: GraphMode) -> CrystalGraph:
    """Build the graph of one crystal.

    Every atom keeps all neighbours up to the distance d₁₂ of its twelfth. The official code
    compares these distances exactly, so that rounding decides whether an equal neighbour belongs to
    the shell and a rigid motion changes the graph; with a tie tolerance it does not. The official
    code also rounds the lattice to 1e-5 Å wherever it turns fractional into cartesian coordinates,
    but not where it shifts them by whole cells; its shells are reproduced only with that. And it
    counts bonds of an atom to its own images twice, but never pairs such a bond with itself, so
    that its graph of a crystal depends on the cell chosen. The tie-tolerant graph has none of this:
    it is the same for every description of a crystal, and not the graph the weights were trained
    on.

    Args:
        crystal: The crystal.
        mode: "official" or "tie-tolerant".

    Raises:
        ValueError: The cell is so flat or long that its images cannot be searched.
    """
    source, target, image = _shells(crystal, mode)
    swap = target < source
    image[swap] = -image[swap]
    source, target = np.where(swap, target, source), np.where(swap, source, target)
    if mode == "tie-tolerant":
        image = np.where((source == target)[:, None], _positive(image), image)
    bonds = np.unique(np.column_stack([source, target, image]), axis=0)
    source, target, image = bonds[:, 0], bonds[:, 1], bonds[:, 2:]
    delta = crystal.frac_coords[target] + image - crystal.frac_coords[source]
    vectors = np.dot(delta, _conversion(crystal, mode))
    sources = np.column_stack([source, target]).ravel()
    targets = np.column_stack([target, source]).ravel()
    displacements = np.stack([vectors, -vectors], axis=1).reshape(-1, 3)
    first, second = line_graph(sources, targets, len(crystal))
    if mode == "official":
        first, second = first[first != second], second[first != second]
    return CrystalGraph(crystal.atomic_numbers, sources, targets, displacements, first, second)


def _positive(image: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each shift or its negative, whichever has its first nonzero entry positive."""
    signs = np.sign(image)
    leading = np.where(signs[:, 0] != 0, signs[:, 0], signs[:, 1])
    leading = np.where(leading != 0, leading, signs[:, 2])
    return image * np.where(leading < 0, -1, 1)[:, None]


def _conversion(crystal: Crystal, mode: GraphMode) -> NDArray[np.float64]:
    """Return the lattice that turns fractional into cartesian coordinates."""
    lattice = crystal.lattice
    return np.around(lattice, OFFICIAL_DECIMALS) if mode == "official" else lattice


def line_graph(
    sources: NDArray[np.int64], targets: NDArray[np.int64], n_atoms: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all pairs of bonds (a → b, b → c), backtracking included.

    Args:
        sources: Atom a of every bond a → b.
        targets: Atom b.
        n_atoms: In the crystal.
    """
    arriving: list[list[int]] = [[] for _ in range(n_atoms)]
    leaving: list[list[int]] = [[] for _ in range(n_atoms)]
    for bond, (u, v) in enumerate(zip(sources.tolist(), targets.tolist(), strict=True)):
        leaving[u].append(bond)
        arriving[v].append(bond)
    ends = [np.repeat(a, len(b)) for a, b in zip(arriving, leaving, strict=True)]
    starts = [np.tile(b, len(a)) for a, b in zip(arriving, leaving, strict=True)]
    first, second = np.concatenate(ends).astype(np.int64), np.concatenate(starts).astype(np.int64)
    return first, second


def _shells(
    crystal: Crystal, mode: GraphMode
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    cutoff = CUTOFF
    tolerance = 0.0 if mode == "official" else TIE_TOLERANCE
    while True:
        source, target, image, distance = _neighbours(crystal, cutoff + tolerance, mode)
        counts = np.bincount(source[distance <= cutoff], minlength=len(crystal))
        if counts.min() >= MAX_NEIGHBOURS:
            break
        longest = float(np.linalg.norm(crystal.lattice, axis=1).max())
        cutoff = longest if cutoff < longest else 2 * cutoff
    keep = np.zeros(len(source), dtype=bool)
    for atom in range(len(crystal)):
        mine = np.nonzero(source == atom)[0]
        shell = np.sort(distance[mine])[MAX_NEIGHBOURS - 1]
        keep[mine] = distance[mine] <= shell + tolerance
    return source[keep], target[keep], image[keep]


def _neighbours(
    crystal: Crystal, cutoff: float, mode: GraphMode
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return (i, j, image, distance) of all pairs with MIN_BOND < d <= cutoff.

    The order of floating-point operations is the official one, because its shells hang on it.
    """
    lattice, frac = crystal.lattice, crystal.frac_coords
    cart = np.dot(frac, _conversion(crystal, mode))
    reach = np.ceil((cutoff + MIN_BOND) / face_distances(lattice))
    low = np.floor(frac.min(axis=0)) - reach
    high = np.ceil(frac.max(axis=0)) + reach
    n_images = float(np.prod(high - low))
    if n_images * len(frac) ** 2 > MAX_CANDIDATES:
        raise ValueError(f"{n_images:.0f} images of {len(frac)} atoms within {cutoff:.1f} Å")
    images = list(product(*(np.arange(a, b) for a, b in zip(low, high, strict=True))))
    found = []
    step = max(1, CHUNK // len(frac) ** 2)
    for start in range(0, len(images), step):
        block = images[start : start + step]
        coords = np.array([np.dot(image, lattice) + cart for image in block])
        distance = np.sum((coords[:, :, None, :] - cart[None, None, :, :]) ** 2, axis=-1) ** 0.5
        where = np.nonzero((distance <= cutoff) & (distance > MIN_BOND))
        shifts = np.array(block)[where[0]].astype(np.int64).reshape(-1, 3)
        found.append((where[2], where[1], shifts, distance[where]))
    i, j, image, d = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return i, j, image, d


# The network


class RadialBasis(nn.Module):
    """exp(−γ (x − c)²) with γ = 1 / spacing (not squared), as the official code has it."""

    def __init__(self, low: float, high: float, bins: int) -> None:
        super().__init__()
        self.centers: Tensor
        self.register_buffer("centers", torch.linspace(low, high, bins))
        self.gamma = (bins - 1) / (high - low)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n,) to (n, bins).

        Args:
            x: Distances in Å, or cosines.
        """
        return torch.exp(-self.gamma * (x[:, None] - self.centers) ** 2)


class Mlp(nn.Module):
    """Linear, BatchNorm, SiLU."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_in) to (n, n_out).

        Args:
            x: Features.
        """
        return self.layer(x)


class EdgeGatedConv(nn.Module):
    """m = W_s x_u + W_d x_v + W_e y; x += SiLU(BN(W x + Σσ(m)·V x_u / Σσ(m))); y += SiLU(BN(m))."""

    def __init__(self, width: int = HIDDEN) -> None:
        super().__init__()
        self.src_gate = nn.Linear(width, width)
        self.dst_gate = nn.Linear(width, width)
        self.edge_gate = nn.Linear(width, width)
        self.bn_edges = nn.BatchNorm1d(width)
        self.src_update = nn.Linear(width, width)
        self.dst_update = nn.Linear(width, width)
        self.bn_nodes = nn.BatchNorm1d(width)

    def forward(self, u: Tensor, v: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return new nodes x and edges y of the graph u → v.

        Args:
            u: Source of every edge, (edges,).
            v: Target of every edge, (edges,).
            x: Features of the nodes, (nodes, n).
            y: Features of the edges, (edges, n).
        """
        m = self.src_gate(x)[u] + self.dst_gate(x)[v] + self.edge_gate(y)
        gate = torch.sigmoid(m)
        zeros = torch.zeros_like(x)
        weighted = zeros.index_add(0, v, gate * self.dst_update(x)[u])
        total = zeros.index_add(0, v, gate)
        new = self.src_update(x) + weighted / (total + 1e-6)
        silu = nn.functional.silu
        return x + silu(self.bn_nodes(new)), y + silu(self.bn_edges(m))


class LineGraphConv(nn.Module):
    """A convolution on the crystal graph, then one on its line graph with the updated bonds."""

    def __init__(self) -> None:
        super().__init__()
        self.node_update = EdgeGatedConv()
        self.edge_update = EdgeGatedConv()

    def forward(
        self, batch: "Batch", x: Tensor, y: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return new atoms x, bonds y and bond pairs z.

        Args:
            batch: Bonds and pairs of bonds.
            x: Features of the atoms, (atoms, n).
            y: Of the bonds, (bonds, n).
            z: Of the pairs, (pairs, n).
        """
        x, m = self.node_update(batch.sources, batch.targets, x, y)
        y, z = self.edge_update(batch.first_bonds, batch.second_bonds, m, z)
        return x, y, z


class Alignn(nn.Module):
    """4 line-graph and 4 gated layers; `fc` is there so that checkpoints load strictly."""

    def __init__(self) -> None:
        super().__init__()
        self.atom_embedding = Mlp(92, HIDDEN)
        self.edge_embedding = nn.Sequential(RadialBasis(0, 8, 80), Mlp(80, 64), Mlp(64, HIDDEN))
        self.angle_embedding = nn.Sequential(RadialBasis(-1, 1, 40), Mlp(40, 64), Mlp(64, HIDDEN))
        self.alignn_layers = nn.ModuleList(LineGraphConv() for _ in range(4))
        self.gcn_layers = nn.ModuleList(EdgeGatedConv() for _ in range(4))
        self.fc = nn.Linear(HIDDEN, 1)

    def forward(self, batch: "Batch") -> Tensor:
        """Return (crystals, 256) latents.

        Args:
            batch: Several crystals.
        """
        r = batch.displacements
        x = self.atom_embedding(batch.atom_features)
        y = self.edge_embedding(torch.linalg.vector_norm(r, dim=1))
        z = self.angle_embedding(bond_cosines(r, batch.first_bonds, batch.second_bonds))
        for layer in self.alignn_layers:
            x, y, z = layer(batch, x, y, z)
        for layer in self.gcn_layers:
            x, y = layer(batch.sources, batch.targets, x, y)
        summed = x.new_zeros(len(batch.n_atoms), HIDDEN).index_add(0, batch.crystal_of_atom, x)
        return summed / batch.n_atoms[:, None]


def bond_cosines(r: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine between b → a and b → c for bond pairs (a → b, b → c).

    Args:
        r: Vector of every bond, (bonds, 3), Å.
        first: Number of the bond a → b, by pair.
        second: Number of the bond b → c.
    """
    back, on = -r[first], r[second]
    norms = torch.linalg.vector_norm(back, dim=1) * torch.linalg.vector_norm(on, dim=1)
    return ((back * on).sum(dim=1) / norms).clamp(-1, 1)


@dataclass(frozen=True)
class Batch:
    """Several graphs side by side."""

    atom_features: Tensor
    crystal_of_atom: Tensor
    n_atoms: Tensor
    sources: Tensor
    targets: Tensor
    displacements: Tensor
    first_bonds: Tensor
    second_bonds: Tensor


def collate(graphs: Sequence[CrystalGraph]) -> Batch:
    """Shift indices and join.

    Args:
        graphs: One per crystal.
    """
    sizes = np.array([len(graph.atomic_numbers) for graph in graphs])
    bonds = np.array([len(graph.sources) for graph in graphs])
    atom_start = np.cumsum(sizes) - sizes
    bond_start = np.cumsum(bonds) - bonds
    table = atom_table()
    numbers = np.concatenate([graph.atomic_numbers for graph in graphs])

    def joined(field: str, starts: NDArray[np.int64]) -> Tensor:
        parts = [getattr(g, field) + s for g, s in zip(graphs, starts, strict=True)]
        return torch.from_numpy(np.concatenate(parts))

    displacements = np.concatenate([graph.displacements for graph in graphs])
    return Batch(
        atom_features=torch.from_numpy(table[numbers]),
        crystal_of_atom=torch.from_numpy(np.repeat(np.arange(len(graphs)), sizes)),
        n_atoms=torch.from_numpy(sizes),
        sources=joined("sources", atom_start),
        targets=joined("targets", atom_start),
        displacements=torch.from_numpy(displacements.astype(np.float32)),
        first_bonds=joined("first_bonds", bond_start),
        second_bonds=joined("second_bonds", bond_start),
    )


def atom_table() -> NDArray[np.float32]:
    """Return the (101, 92) one-hot element table of CGCNN (Xie and Grossman 2018, MIT), row Z."""
    text = (resources.files("crystal_fidelity") / "cgcnn_atoms.json").read_text(encoding="utf-8")
    table = np.zeros((101, 92), dtype=np.float32)
    for z, ones in json.loads(text).items():
        table[int(z), ones] = 1
    return table


# Features


class AlignnFeaturizer:
    """256-d ALIGNN latents, a `Featurizer`, cached by content of the structure.

    Args:
        weights: Safetensors made by `crystal-fidelity weights`, an official .zip or a .pt.
        mode: "official" reproduces the published graphs, which rounding can change;
            "tie-tolerant" does not depend on orientation or cell.
        cache: Folder of cached rows; None is the default folder.
        on_progress: Called with what is being done.
    """

    def __init__(
        self,
        weights: Path,
        mode: GraphMode = "official",
        cache: Path | None = None,
        *,
        on_progress: Progress = silent,
    ) -> None:
        self.dimension = HIDDEN
        tensors = load_weights(weights)
        self._network = Alignn()
        self._network.load_state_dict(tensors, strict=True)
        self._network.eval()
        self._mode: GraphMode = mode
        self.identity = Identity("ALIGNN", tensors_digest(tensors), f"{mode} graph")
        self._rows = CachedRows(
            cache,
            self.identity,
            HIDDEN,
            self._compute,
            LIMITS,
            batch=BATCH,
            on_progress=on_progress,
        )

    def features(self, structures: Sequence[object]) -> FeatureSet:
        """Return latents per structure, those outside ALIGNN's domain named as failures.

        Args:
            structures: Crystals, failures, pymatgen structures or ASE atoms.
        """
        rows, reasons, names = self._rows(structures)
        return feature_set(rows, names, reasons, self.identity)

    def _compute(self, crystals: Sequence[Crystal]) -> NDArray[np.float32]:
        rows = np.full((len(crystals), HIDDEN), np.nan, dtype=np.float32)
        batches: list[dict[int, CrystalGraph]] = [{}]
        pairs = 0
        for index, crystal in enumerate(crystals):
            with suppress(ValueError):  # no graph: the row stays NaN, a counted failure
                graph = build_graph(crystal, self._mode)
                pairs += len(graph.first_bonds)
                if batches[-1] and pairs > MAX_PAIRS:
                    batches.append({})
                    pairs = len(graph.first_bonds)
                batches[-1][index] = graph
        for batch in filter(None, batches):
            with torch.no_grad():
                rows[list(batch)] = self._network(collate([*batch.values()])).numpy()
        return rows


# Weights

PUBLISHED = {
    "mp_e_form_alignn": "https://figshare.com/ndownloader/files/31458811",
    "mp_e_form_alignnn": "https://figshare.com/ndownloader/files/31458811",
}
"""Both spellings of one file: the name was misspelt until mid-2023."""
MAX_BYTES = 1 << 29
EXPECTED = {
    "alignn_layers": 4,
    "gcn_layers": 4,
    "atom_input_features": 92,
    "edge_input_features": 80,
    "triplet_input_features": 40,
    "embedding_features": 64,
    "hidden_features": 256,
    "output_features": 1,
}
_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}
_INERT = ("torch.optim", "ignite", "collections", "numpy", "functools")
"""Optimiser states that lie beside the weights: replaced by nothing, never built."""


_TORN = (
    zipfile.BadZipFile,
    EOFError,
    OSError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    NotImplementedError,
    RuntimeError,
)


class _Nothing:
    """Stands for an object of the checkpoint that is not a weight."""

    def __init__(self, *_args: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


class _StateReader(pickle.Unpickler):
    """Builds arrays and containers from the pickle of a checkpoint; calls nothing that it names.

    Args:
        archive: The checkpoint, a zip as `torch.save` writes it.
        root: Folder of its members.
    """

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        text = archive.read(f"{root}data.pkl")
        try:
            puts = [
                int(arg or 0) for code, arg, _ in pickletools.genops(text) if "PUT" in code.name
            ]
        except ValueError as error:
            raise pickle.UnpicklingError(f"the file has a broken pickle ({error})") from error
        if max(puts, default=0) > len(text):  # memory is taken for all places before it
            raise pickle.UnpicklingError("the file asks for a place beyond its size")
        super().__init__(io.BytesIO(text))
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        """Return the few things that a state needs, none of them code of the file.

        Raises:
            pickle.UnpicklingError: The file asks for anything else.
        """
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return getattr(self, name)
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module.startswith(_INERT) or (module, name) == ("builtins", "getattr"):
            return _Nothing
        raise pickle.UnpicklingError(f"the file asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> NDArray[Any]:
        """Return the numbers of a storage."""
        _, dtype, key, _, _ = pid
        return np.frombuffer(self._archive.read(f"{self._root}data/{key}"), dtype)

    @staticmethod
    def _rebuild_tensor_v2(
        storage: NDArray[Any], offset: int, shape: Any, strides: Any, *_rest: object
    ) -> Tensor:
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        beyond = 0 not in shape and max(last + 1, math.prod(shape)) > len(storage)
        if min([offset, *shape, *strides]) < 0 or beyond:
            raise pickle.UnpicklingError("the file asks for a tensor beyond its numbers")
        steps = [step * storage.itemsize for step in strides]
        view = np.lib.stride_tricks.as_strided(storage[offset:], tuple(shape), steps)
        return torch.from_numpy(view.copy())

    @staticmethod
    def _rebuild_parameter(data: Tensor, *_rest: object) -> Tensor:
        return data


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read weights from safetensors, an official .zip or a .pt checkpoint, running nothing in it.

    Args:
        path: The file. A checkpoint is a zip as `torch.save` has written it since torch 1.6.

    Returns:
        Tensors by the official names.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is torn, a program (TorchScript), hostile, too large, or not this
            architecture.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path}: {size} bytes > {MAX_BYTES}: not ALIGNN weights (about 50 MB)")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return _checked(load_file(path), path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    try:
        content = _read_state(path.read_bytes(), path)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is refused: {error}, which is not a tensor") from error
    except _TORN as error:
        raise ValueError(
            f"{path} is not a whole checkpoint of torch 1.6 or later ({error}): download it again"
        ) from error
    weights = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict):
        raise ValueError(f"{path} holds no weights under 'model'")
    return _checked(dict(weights), path)


def _read_state(data: bytes, path: Path) -> object:
    """Return what a checkpoint holds; of an official zip, its last checkpoint."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        if (unpacked := sum(entry.file_size for entry in archive.infolist())) > MAX_BYTES:
            raise ValueError(f"{path}: {unpacked} bytes unpacked > {MAX_BYTES}: no ALIGNN weights")
        if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
            raise ValueError(f"{path} is refused: it is a TorchScript program, not plain weights")
        for name in (n for n in names if n.endswith("config.json")):
            model = json.loads(archive.read(name)).get("model", {})
            for key, value in EXPECTED.items():
                if model.get(key, value) != value:
                    raise ValueError(f"{path}: {key} = {model[key]}, this network has {value}")
        if checkpoints := [n for n in names if "checkpoint_" in n and n.endswith(".pt")]:
            return _read_state(archive.read(checkpoints[-1]), path)
        pickles = [name for name in names if name.endswith("data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"{path} is not a whole checkpoint: it has no data.pkl")
        return _StateReader(archive, pickles[0].removesuffix("data.pkl")).load()


def _checked(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    wanted = {name: tuple(t.shape) for name, t in Alignn().state_dict().items()}
    found = {n: tuple(t.shape) if isinstance(t, Tensor) else None for n, t in tensors.items()}
    if found != wanted:
        wrong = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
        raise ValueError(
            f"{path} is not ALIGNN with 4 + 4 layers of 256: {len(wrong)} of {len(wanted)} tensors "
            f"are missing or have another shape, such as {wrong[0]}"
        )
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {name} holds NaN or infinity")
    return {name: tensors[name] for name in wanted}


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of names and values: the same for every container of the same weights.

    Args:
        tensors: By name.
    """
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        hasher.update(name.encode())
        hasher.update(tensors[name].detach().contiguous().numpy().tobytes())
    return hasher.hexdigest()


def convert_weights(source: str | Path, target: str | Path) -> str:
    """Write weights as safetensors with the digest of their source.

    Args:
        source: See `load_weights`.
        target: File to write.

    Returns:
        SHA-256 of the tensors.

    Raises:
        ValueError: See `load_weights`.
    """
    from safetensors.torch import save_file

    tensors = load_weights(source)
    metadata = {
        "source": Path(source).name,
        "source_sha256": file_digest(source),
        "tensors_sha256": tensors_digest(tensors),
    }
    with atomic_path(target) as file:
        save_file({name: t.contiguous() for name, t in tensors.items()}, file, metadata=metadata)
    return metadata["tensors_sha256"]


def fetch_weights(name: str, target: str | Path, *, sha256: str | None = None) -> str:
    """Download a published zip.

    Args:
        name: A key of PUBLISHED.
        target: File to write.
        sha256: Digest that the file must have.

    Returns:
        The SHA-256 of the file.

    Raises:
        ValueError: The name is not known, or the file is too large.
        DownloadError: The download failed, or the digest differs; nothing is kept.
    """
    if name not in PUBLISHED:
        raise ValueError(f"weights {name!r} are not known; choose from {', '.join(PUBLISHED)}")

    def bounded(done: int, _total: int | None) -> None:
        if done > MAX_BYTES:
            raise ValueError(
                f"{PUBLISHED[name]}: more than {MAX_BYTES} bytes, weights have about 50 MB"
            )

    return fetch(PUBLISHED[name], target, sha256, progress=bounded)
