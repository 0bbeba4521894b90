"""Crystals to ALIGNN latents: published weights, graphs in either mode, rows kept on disk."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from crystal_fidelity.alignn import HIDDEN, Alignn, collate
from crystal_fidelity.alignn_graph import CrystalGraph, GraphMode, build_graph
from crystal_fidelity.featurizers import (
    FeatureSet,
    Identity,
    Progress,
    RowCache,
    default_cache,
    feature_set,
    screened_rows,
)
from crystal_fidelity.screening import Limits
from crystal_fidelity.structures import Crystal
from crystal_fidelity.weights import load_weights, tensors_digest

LIMITS = Limits(max_atomic_number=100, max_nearest_neighbour=float("inf"))
MAX_PAIRS = 40_000
"""Bond pairs per batch; each costs about 10 kB at the widest layer."""
BATCH = 64


class AlignnFeaturizer:
    """256-d ALIGNN latents, cached by content of the structure.

    Args:
        weights: safetensors made by `crystal-fidelity weights`, an official .zip or a .pt.
        mode: "official" reproduces the published graphs, which rounding can change;
            "tie-tolerant" does not depend on orientation or cell.
        cache: folder of cached rows; None is the default folder.
        use_cache: whether to keep rows on disk.
        on_progress: told what is being done.
    """

    def __init__(
        self,
        weights: Path,
        mode: GraphMode = "official",
        cache: Path | None = None,
        *,
        use_cache: bool = True,
        on_progress: Progress = lambda _text: None,
    ) -> None:
        tensors = load_weights(weights)
        self._network = Alignn()
        self._network.load_state_dict(tensors, strict=True)
        self._network.eval()
        self._mode: GraphMode = mode
        self._identity = Identity("ALIGNN", tensors_digest(tensors), f"{mode} graph")
        folder = (cache or default_cache()) if use_cache else None
        self._cache = RowCache(folder, self._identity, HIDDEN)
        self._on_progress = on_progress

    @property
    def identity(self) -> Identity:
        """Name, weights and graph mode."""
        return self._identity

    @property
    def dimension(self) -> int:
        """256."""
        return HIDDEN

    def features(self, structures: Sequence[object]) -> FeatureSet:
        """Return latents per structure, those outside ALIGNN's domain named as failures."""
        rows, reasons, names = screened_rows(
            structures,
            self._cache,
            self._compute,
            HIDDEN,
            LIMITS,
            batch=BATCH,
            on_progress=self._on_progress,
        )
        return feature_set(rows, names, reasons, self._identity)

    def _compute(self, crystals: Sequence[Crystal]) -> NDArray[np.float32]:
        rows = np.full((len(crystals), HIDDEN), np.nan, dtype=np.float32)
        waiting: list[tuple[int, CrystalGraph]] = []
        pairs = 0
        for index, crystal in enumerate(crystals):
            try:
                graph = build_graph(crystal, self._mode)
            except ValueError:  # no graph: the row stays NaN, a counted failure
                continue
            if waiting and pairs + len(graph.first_bonds) > MAX_PAIRS:
                self._run(waiting, rows)
                waiting, pairs = [], 0
            waiting.append((index, graph))
            pairs += len(graph.first_bonds)
        if waiting:
            self._run(waiting, rows)
        return rows

    def _run(self, waiting: list[tuple[int, CrystalGraph]], rows: NDArray[np.float32]) -> None:
        with torch.no_grad():
            latents = self._network(collate([graph for _, graph in waiting]))
        rows[[index for index, _ in waiting]] = latents.numpy()
