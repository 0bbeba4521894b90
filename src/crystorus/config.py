"""Every setting of a run as frozen dataclasses, read from TOML; defaults of `paper` are Table 1.

`preset` chooses between the two systems: "paper" is the paper's, "default" ours. A key that
does not exist is an error that names the nearest one.
"""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from crystorus.diffusion.algorithms import Precision, SamplerConfig
from crystorus.diffusion.log_lattice_process import LatticeSpace
from crystorus.diffusion.torus_process import TorusTarget
from crystorus.networks.fieldnet import FieldNetConfig
from crystorus.networks.gemsnet import GemsNetConfig

Preset = Literal["default", "paper"]


class ConfigError(ValueError):
    """A setting that does not exist or has an impossible value."""


@dataclass(frozen=True)
class DataConfig:
    """Where the crystals are."""

    train: str = "data/mp-20/train.csv"
    """Training crystals: a store, a CSV with a `cif` column, a folder of CIFs, extxyz, …"""
    validation: str = "data/mp-20/val.csv"
    """Crystals on which the best checkpoint is chosen."""
    max_atoms: int = 20
    """Larger crystals are left out."""


@dataclass(frozen=True)
class DiffusionConfig:
    """Noise levels of the default preset, geometric in t."""

    steps: int = 1000
    """Levels T; any number of sampling steps up to it can be chosen later."""
    torus_lowest: float = 0.01
    """s_1 of the positions, fractional."""
    torus_highest: float = 0.5
    """s_T of the positions; 0.5 leaves 0.007 of the first Fourier coefficient."""
    strain_lowest: float = 0.01
    """Standard deviation of a strain coefficient at t = 1."""
    shape_highest: float = 0.45
    """Standard deviation of a shape coefficient at t = T."""
    volume_highest: float = 0.3
    """Standard deviation of the volume coefficient at t = T."""
    target: TorusTarget = "posterior_mean"
    """What the displacement means: see `TorusProcess`."""
    centred: bool = True
    """Whether displacements have zero mean per crystal; the paper's have not."""
    weighted: bool = True
    """Whether their errors count in units of each level; the paper's, in fractions of the cell."""


@dataclass(frozen=True)
class PaperDiffusionConfig:
    """Noise levels of the paper (Table 1)."""

    steps: int = 100
    """Diffusion steps T."""
    cell_betas: tuple[float, float] = (1e-5, 1e-1)
    """(β_0^ρ, β_T^ρ), linear."""
    torus_betas: tuple[float, float] = (1e-6, 2e-3)
    """(β_0^x, β_T^x), linear."""
    lattice_space: LatticeSpace = "log"
    """"euclidean" is Table 4 (d)."""
    target: TorusTarget = "shortest"
    """"unwrapped" is Table 4 (e)."""


@dataclass(frozen=True)
class TrainingConfig:
    """How the weights are found."""

    epochs: int = 512
    """Passes over the training crystals at most."""
    minutes: float = 0.0
    """Stop, with the learning rate run down, after this wall time; 0 means no limit."""
    cpu_minutes: float = 0.0
    """The same after this processor time of all training processes together, which other work on
    the machine does not shorten; 0 means no limit."""
    batch_size: int = 128
    """Crystals per batch; 0 leaves it to `batch_pairs`."""
    batch_pairs: int = 0
    """Pairs of atoms per batch of equal-sized crystals; 0 means batches of `batch_size`."""
    cpu_atoms: int = 0
    """Atoms a CPU works on at a time: a larger batch goes through in pieces whose gradients are
    added up, so that memory does not grow with the batch. 0 means all at once."""
    optimizer: Literal["adam", "muon"] = "adam"
    """"muon" orthogonalises the updates of the hidden matrices and uses Adam for the rest."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    adam_beta2: float = 0.999
    """Decay of Adam's second moment; the first decays by 0.9."""
    warmup_steps: int = 0
    """Steps over which the rate rises linearly."""
    decay: float = 0.0
    """Fraction of the run at whose end the rate falls linearly to zero; 0 means constant."""
    clip_norm: float = 1.0
    """Gradient norm above which gradients are scaled down."""
    ema_decay: float = 0.995
    """Decay per step of the averaged weights, which are the ones used."""
    cell_weight: float = 1.0
    """Weight of L^ρ beside L^x."""
    loss_limit: float = 0.0
    """A crystal's loss counts up to this, so that no odd cell rules a batch; 0 means no limit."""
    high_noise_fraction: float = 0.2
    """Share of the training steps drawn from the noisiest fifth of t; 0.2 is uniform."""
    precision: Precision = "fp32"
    """Precision of the products inside the blocks; weights and geometry stay fp32."""
    seed: int = 0
    """Seed of weights, order and noise."""
    validate_every: int = 1
    """Epochs between validations."""
    sample_every: int = 10
    """Epochs between samples whose validity and match rate are logged; 0 means never."""
    sample_crystals: int = 64
    """Validation compositions in that sample."""
    validation_crystals: int = 1024
    """Validation crystals, a fixed random choice, in a validation; 0 means all."""
    log_every: int = 50
    """Steps over which a logged training loss is averaged."""
    save_minutes: float = 5.0
    """Minutes of training between saves of the state inside an epoch."""
    start_from: str = ""
    """Checkpoint folder whose weights the run starts from; empty for new weights."""
    workers: int = 0
    """Processes that prepare batches."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train."""
    devices: int = 1
    """Devices, each with a process, per node."""
    nodes: int = 1
    """Machines, started by torchrun or SLURM."""


@dataclass(frozen=True)
class Config:
    """A whole run of the default preset."""

    preset: Preset = "default"
    """Which system: "default" or "paper"."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where the crystals are."""
    diffusion: DiffusionConfig | PaperDiffusionConfig = field(default_factory=DiffusionConfig)
    """The forward process."""
    network: FieldNetConfig | GemsNetConfig = field(default_factory=FieldNetConfig)
    """The network f_θ."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How the weights are found."""
    sampling: SamplerConfig = field(default_factory=SamplerConfig)
    """How to sample unless told otherwise."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply `section.key=value` overrides.

    Raises:
        ConfigError: If the file cannot be read, a key does not exist or a value does not fit.
    """
    try:
        tree = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"no configuration at {path}: give a .toml, as configs/default.toml"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} is not readable TOML: {error}") from error
    for override in overrides:
        _apply(tree, override)
    return config_from_dict(tree)


def config_from_dict(tree: Mapping[str, Any]) -> Config:
    """Build a `Config` from nested mappings.

    Raises:
        ConfigError: If a key does not exist or a value does not fit.
    """
    preset = tree.get("preset", "default")
    if preset not in typing.get_args(Preset):
        raise ConfigError(
            f"preset = {preset!r}: choose one of {', '.join(typing.get_args(Preset))}"
        )
    kinds: dict[str, type] = {
        "data": DataConfig,
        "training": TrainingConfig,
        "sampling": SamplerConfig,
    }
    kinds["diffusion"] = PaperDiffusionConfig if preset == "paper" else DiffusionConfig
    kinds["network"] = GemsNetConfig if preset == "paper" else FieldNetConfig
    _check_keys(tree, [*kinds, "preset"], "")
    sections = {name: _build(kind, tree.get(name, {}), name + ".") for name, kind in kinds.items()}
    return Config(preset, **sections)


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return a configuration as nested dicts of plain values."""
    return dataclasses.asdict(config)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r}: write it as section.key=value")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = key.strip().split(".")
    for name in sections:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override {override!r}: {name!r} is a value, not a section")
    tree[last] = value


def _check_keys(tree: Any, known: Sequence[str], prefix: str) -> None:
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')} must be a section, got {tree!r}")
    for key in tree:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"unknown setting {prefix}{key}: {hint}")


def _build(kind: type, tree: Any, prefix: str) -> Any:
    """Build one dataclass from a mapping, checking every key and value."""
    hints = typing.get_type_hints(kind)
    _check_keys(tree, list(hints), prefix)
    return kind(**{key: _fit(hints[key], value, prefix + key) for key, value in tree.items()})


def _fit(hint: Any, value: Any, key: str) -> Any:
    """Return `value` as the annotated type.

    Raises:
        ConfigError: If it is of another type or not one of the allowed words.
    """
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, key + ".")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{key} = {value!r}: choose one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(arguments):
            raise ConfigError(f"{key} = {value!r}: give {len(arguments)} values")
        return tuple(_fit(h, v, key) for h, v in zip(arguments, value, strict=True))
    if origin is types.UnionType:
        raise ConfigError(f"{key}: settings of more than one type are not supported")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{key} = {value!r}: expected {hint.__name__}")
    return value
