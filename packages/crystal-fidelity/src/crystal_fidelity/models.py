"""Names on the command line to featurizers and energy models."""

from pathlib import Path
from typing import Literal

from crystal_fidelity.alignn_graph import GraphMode
from crystal_fidelity.energies import AseEnergies, EnergyModel
from crystal_fidelity.featurizers import Featurizer, Progress

FeaturizerName = Literal["chgnet", "alignn", "alignn-invariant"]
DISTANCE_NAMES = {
    "chgnet": "Fréchet CHGNet distance",
    "alignn": "Fréchet ALIGNN Distance (FAD)",
    "alignn-invariant": "Fréchet ALIGNN Distance (tie-tolerant graph)",
}


def make_featurizer(
    name: FeaturizerName,
    *,
    weights: Path | None = None,
    cache: Path | None = None,
    on_progress: Progress = lambda _text: None,
) -> Featurizer:
    """Return the featurizer of a name.

    Raises:
        ImportError: its extra is not installed.
        ValueError: it needs weights and none are given.
    """
    if name == "chgnet":
        from crystal_fidelity.chgnet_model import ChgnetModel

        return ChgnetModel(cache, on_progress=on_progress)
    if weights is None:
        raise ValueError(
            f"featurizer {name} needs weights: give --weights FILE, made once by "
            "`crystal-fidelity weights fetch mp_e_form_alignn FILE`"
        )
    try:
        from crystal_fidelity.alignn_featurizer import AlignnFeaturizer
    except ImportError as error:
        raise ImportError(
            "ALIGNN features need torch and safetensors: pip install 'crystal-fidelity[alignn]'"
        ) from error
    mode: GraphMode = "official" if name == "alignn" else "tie-tolerant"
    return AlignnFeaturizer(weights, mode, cache, on_progress=on_progress)


def make_energy_model(
    name: str, *, cache: Path | None = None, on_progress: Progress = lambda _text: None
) -> EnergyModel:
    """Return CHGNet for "chgnet", or the ASE calculator of a `module:factory`.

    Raises:
        ImportError: chgnet is not installed.
        ValueError: the factory cannot be imported.
    """
    if name == "chgnet":
        from crystal_fidelity.chgnet_model import ChgnetModel

        return ChgnetModel(cache, on_progress=on_progress)
    return AseEnergies(name)
