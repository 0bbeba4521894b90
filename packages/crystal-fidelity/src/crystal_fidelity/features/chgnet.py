"""CHGNet, the default that needs no download: its weights come inside its package.

A Fréchet distance on these features is not the Fréchet ALIGNN Distance and never bears that
name. Energies and features come out of one pass and share one cache.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.features import CachedRows, FeatureSet, Identity, Limits, feature_set
from crystal_fidelity.files import file_digest
from crystal_fidelity.scores import Progress, silent
from crystal_fidelity.structures import Crystal, to_pymatgen

VERSION = "0.3.0"
WIDTH = 64
BATCH = 32
LIMITS = Limits(max_atomic_number=94)


class ChgnetModel:
    """Features and energies of CHGNet 0.3.0, cached by content of the structure.

    Features are `crystal_fea` divided by the number of atoms: the network sums over atoms, which
    would make the same crystal in a doubled cell another point.

    Args:
        cache: Folder of cached rows; None is the default folder.
        on_progress: Called with what is being done.

    Raises:
        ImportError: chgnet is not installed.

    Source: Deng et al. 2023, doi:10.1038/s42256-023-00716-3
    """

    def __init__(self, cache: Path | None = None, *, on_progress: Progress = silent) -> None:
        self.identity = Identity(f"CHGNet {VERSION} crystal_fea/atom", _weights_digest(), "6 Å")
        self.dimension = WIDTH
        self._rows = CachedRows(
            cache,
            self.identity,
            WIDTH + 1,
            self._compute,
            LIMITS,
            batch=BATCH,
            on_progress=on_progress,
        )
        self._network: Any = None

    def features(self, structures: Sequence[object]) -> FeatureSet:
        """Return features per structure, those outside CHGNet's domain named as failures.

        Args:
            structures: Crystals, failures, pymatgen structures or ASE atoms.
        """
        rows, reasons, names = self._rows(structures)
        return feature_set(rows[:, :WIDTH], names, reasons, self.identity)

    def energies(self, structures: Sequence[object]) -> NDArray[np.float64]:
        """Return total energies in eV/atom (no elemental references), NaN for failures.

        Args:
            structures: Crystals, failures, pymatgen structures or ASE atoms.
        """
        return self._rows(structures)[0][:, WIDTH]

    def _compute(self, crystals: Sequence[Crystal]) -> NDArray[np.float32]:
        import torch

        network = self._load()
        graphs, rows = [], np.full((len(crystals), WIDTH + 1), np.nan, dtype=np.float32)
        placed = []
        for index, crystal in enumerate(crystals):
            try:
                graphs.append(network.graph_converter(to_pymatgen(crystal)))
                placed.append(index)
            except (ValueError, RuntimeError):  # no graph: the row stays NaN, a counted failure
                continue
        if graphs:
            with torch.no_grad():
                result = network(graphs, task="e", return_crystal_feas=True)
            n_atoms = np.array([[len(crystals[i])] for i in placed])
            rows[placed, :WIDTH] = result["crystal_fea"].cpu().numpy() / n_atoms
            rows[placed, WIDTH] = result["e"].cpu().numpy().reshape(-1)
        return rows

    def _load(self) -> Any:
        if self._network is None:
            from chgnet.model import CHGNet

            self._network = CHGNet.load(model_name=VERSION, use_device="cpu", verbose=False)
            self._network.eval()
            self._network.graph_converter.set_isolated_atom_response("error")
        return self._network


def _weights_digest() -> str:
    try:
        import chgnet
    except ImportError as error:
        raise ImportError(
            "CHGNet features and energies need chgnet: pip install 'crystal-fidelity[chgnet]'"
        ) from error
    folder = Path(chgnet.__file__).parent / "pretrained" / VERSION
    (weights,) = folder.glob("*.pth.tar")
    return file_digest(weights)
