"""Every setting of a run as frozen dataclasses, read from TOML; defaults of `paper` are Table 1.

`preset` chooses between the two systems: "paper" is the paper's, "default" ours. A key that does
not exist is an error that names the nearest one. Nothing here imports torch, so that a mistake is
answered at once.
"""

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from crystorus.errors import ConfigError

Preset = Literal["default", "paper"]
SamplerName = Literal["paper", "bridge", "ode"]
Precision = Literal["fp32", "bf16"]
TorusTarget = Literal["posterior_mean", "shortest", "unwrapped"]
LatticeSpace = Literal["log", "euclidean"]

MAX_WIDTH, MAX_BLOCKS = 1024, 64
"""Largest size and number of blocks of a network."""
MAX_CUTOFF = 30.0
"""Å, and 1/Å in reciprocal space: the terms of a sum grow with its cube."""
MAX_LEVELS = 100_000
"""Largest number of noise levels."""

RENAMED = {
    "sampling": {
        "first": "first_fraction",
        "last": "last_fraction",
        "stretch": "over_relaxation",
        "settle": "final_refinement_steps",
    }
}
"""Former names of settings, by section: checkpoints, files and overrides may still have them."""


@dataclass(frozen=True)
class LatticeSumConfig:
    """Radial resolution of the lattice sums; counts are per angular degree l = 0, 1, 2."""

    cutoff: float = 6.0
    """Distance in Å where the real-space sums end smoothly."""
    radial: tuple[int, int, int] = (16, 10, 6)
    """Gaussians in distance."""
    reciprocal_cutoff: float = 3.0
    """|G| in 1/Å (2π convention) where the reciprocal sums end smoothly."""
    reciprocal: tuple[int, int, int] = (8, 6, 4)
    """Gaussians in |G|."""

    def __post_init__(self) -> None:
        _check_network(self)

    @property
    def widths(self) -> tuple[int, int, int]:
        """Number of features of each degree."""
        first, second, third = zip(self.radial, self.reciprocal, strict=True)
        return sum(first), sum(second), sum(third)


@dataclass(frozen=True)
class FieldNetConfig:
    """Size of the default network."""

    channels: int = 128
    """Scalars per atom."""
    vector_channels: int = 48
    """Vectors (l = 1) per atom."""
    tensor_channels: int = 32
    """Quadrupoles (l = 2) per atom."""
    pair_channels: int = 64
    """Scalars per pair of atoms."""
    gate_channels: int = 32
    """Products of pair state and lattice sums, per radial function."""
    blocks: int = 4
    """Message-passing blocks."""
    sums: LatticeSumConfig = field(default_factory=LatticeSumConfig)
    """Resolution of the lattice sums."""

    def __post_init__(self) -> None:
        _check_network(self)


@dataclass(frozen=True)
class GemsNetConfig:
    """Sizes and switches of the `paper` preset's network; defaults are the paper's."""

    blocks: int = 3
    """Interaction blocks of the encoder, and of the decoder."""
    atom: int = 128
    """Features of an atom."""
    edge: int = 128
    """Features of an edge."""
    triplet: int = 32
    """Features of an edge while it is summed over pairs of edges."""
    rbf: int = 16
    """Size to which distances are projected before they filter messages."""
    cbf: int = 16
    """Size to which distance and angle are projected before they filter pairs."""
    bilinear: int = 64
    """Features that come out of the sum over pairs of edges."""
    before_skip: int = 1
    """Residual layers before a block's skip connection."""
    after_skip: int = 2
    """Residual layers after a block's skip connection."""
    concat: int = 1
    """Residual layers after edges are joined with their atoms."""
    atom_layers: int = 3
    """Residual layers of an atom update."""
    num_spherical: int = 7
    """Number of angular functions Y_l0, l = 0 … 6."""
    num_radial: int = 128
    """Number of Gaussians over the distance."""
    cutoff: float = 6.0
    """Å. The envelope is zero there and beyond."""
    envelope_exponent: int = 5
    """p of the polynomial envelope."""
    neighbours: int = 32
    """k of the kNN graph (Table 1)."""
    field_rank: int = 16
    """Rank of the weights w_γγ' as a matrix over pairs of edges; the paper leaves it open."""
    decode_from: Literal["cubic", "noisy"] = "cubic"
    """ρ' = y^ρ I₃ (Eq. 11) or ρ' = y^ρ ρ (Eq. 9c): ablation (a) of Table 4."""
    time_embedding: bool = True
    """Add the sinusoids of t to the element's vector (Eq. 8): ablation (b) of Table 4."""
    encoder: bool = True
    """Pass z^enc (Eq. 9b), not z^emb, to the decoder: ablation (c) of Table 4."""

    def __post_init__(self) -> None:
        _check_network(self)


@dataclass(frozen=True)
class DataConfig:
    """Where the crystals are."""

    train: str = "data/mp-20/train.csv"
    """Training crystals: a store, a CSV with a `cif` column, a folder of CIFs, extxyz, …"""
    validation: str = "data/mp-20/val.csv"
    """Crystals on which the best checkpoint is chosen, or a fraction such as 0.1: so many of
    the training crystals, drawn at random, always the same ones."""
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

    def __post_init__(self) -> None:
        _check_levels(self.steps)


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

    def __post_init__(self) -> None:
        _check_levels(self.steps)


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
    """Fraction of the training steps drawn from the noisiest fifth of t; 0.2 is uniform."""
    symmetric_fraction: float = 0.0
    """Fraction of the crystals that are noised inside their own space groups, for sampling that
    keeps one; where it is above 0, checkpoints hold the skeletons of the training crystals. Of the
    default preset only: the logarithm of the paper's cells keeps no symmetry."""
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
    """Checkpoint folder whose weights the run starts from, "shipped" for those of the package;
    empty for new weights."""
    workers: int = 0
    """Processes that prepare batches."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train."""
    devices: int = 1
    """Devices, each with a process, per node."""
    nodes: int = 1
    """Machines, started by torchrun or SLURM."""


@dataclass(frozen=True)
class SamplerConfig:
    """A sampling run: which sampler, in how many steps, from which noise level to which.

    Raises:
        ConfigError: If a number is out of its range.

    Examples:
        >>> import crystorus
        >>> few = SamplerConfig(steps=10, last_fraction=0.3, temperature=0.5)
        >>> len(crystorus.generate("NaCl", sampler=few))
        1
    """

    name: SamplerName = "bridge"
    """"paper" is Algorithm 2, "bridge" draws from the exact posterior, "ode" is deterministic."""
    steps: int = 100
    """Network evaluations."""
    anti_annealing: float = 0.0
    """The drift is multiplied by 1 + anti_annealing · (1 - t/T)."""
    first_fraction: float = 1.0
    """Fraction of T at which a sampling run from noise begins, above 0 to 1."""
    last_fraction: float = 0.0
    """The noise levels fall evenly from the first one towards this fraction of it, 0 to below 1;
    the last step always ends at level 0."""
    temperature: float = 1.0
    """Factor on the noise that every step adds; below 1 sampling seeks the likeliest crystals."""
    over_relaxation: float = 1.0
    """Multiplies the predicted displacement of atoms at every step but the last. Values above 1
    over-relax past the posterior mean."""
    final_refinement_steps: int = 0
    """Further deterministic evaluations at the end, as if from 0.2 T but without noise: they
    change little but the symmetry, which the random steps break."""
    precision: Precision = "fp32"
    """Precision of the products inside the default network's blocks; geometry stays fp32."""

    def __post_init__(self) -> None:
        ranges = {
            "first_fraction": (0 < self.first_fraction <= 1, "a fraction of T, above 0 to 1"),
            "last_fraction": (
                0 <= self.last_fraction < 1,
                "a fraction of the first level, 0 to below 1",
            ),
            "temperature": (0 <= self.temperature < math.inf, "a number from 0 up"),
            "over_relaxation": (0 <= self.over_relaxation < math.inf, "a number from 0 up"),
            "final_refinement_steps": (
                self.final_refinement_steps >= 0,
                "a number of steps, 0 or more",
            ),
            "anti_annealing": (0 <= self.anti_annealing < math.inf, "a finite number from 0 up"),
        }
        for name, (possible, wanted) in ranges.items():
            if not possible:
                raise ConfigError(f"{name} = {getattr(self, name)}: give {wanted}")


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


def _check_network(settings: LatticeSumConfig | FieldNetConfig | GemsNetConfig) -> None:
    """Keep the card of somebody else's checkpoint from asking for all memory."""
    for name, value in vars(settings).items():
        if isinstance(value, float) and not 0 < value <= MAX_CUTOFF:
            raise ConfigError(f"{name} = {value}: give a number above 0, at most {MAX_CUTOFF:g}")
        most = MAX_BLOCKS if name == "blocks" else MAX_WIDTH
        sizes = value if isinstance(value, tuple) else (value,)
        if any(isinstance(size, int) and size > most for size in sizes):
            raise ConfigError(f"{name} = {value}: give at most {most}")


def _check_levels(steps: int) -> None:
    if steps > MAX_LEVELS:
        raise ConfigError(f"steps = {steps}: give at most {MAX_LEVELS}")


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply overrides.

    Args:
        path: The file.
        overrides: Each `section.key=value`; the value is TOML, or text as it stands.

    Returns:
        The configuration, with defaults for what is not given.

    Raises:
        ConfigError: If the file cannot be read, a key does not exist or a value does not fit.

    Examples:
        >>> written = Path("mine.toml").write_text('preset = "default"')
        >>> load_config(Path("mine.toml"), ["training.minutes=15"]).training.minutes
        15.0
    """
    try:
        tree = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"no configuration at {path}: take one of the folder configs of the repository, or "
            'write a file with the line preset = "default"'
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise ConfigError(f"{path} is not readable TOML: {error}") from error
    if tree.get("preset") == "paper" and "steps" in tree.get("network", {}):
        levels = tree.get("diffusion", {}).get("steps", PaperDiffusionConfig.steps)
        if tree["network"]["steps"] != levels:
            raise ConfigError(
                f"network.steps = {tree['network']['steps']} but diffusion.steps = {levels}: the "
                "network has no steps of its own; remove network.steps"
            )
    tree = with_new_names(tree)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override {override!r}: write it as section.key=value")
        try:
            value = tomllib.loads(f"v = {text}")["v"]
        except (tomllib.TOMLDecodeError, RecursionError):
            value = text
        *sections, last = key.strip().split(".")
        branch = tree
        for name in sections:
            branch = branch.setdefault(name, {})
            if not isinstance(branch, dict):
                raise ConfigError(f"override {override!r}: {name!r} is a value, not a section")
        branch[RENAMED.get(".".join(sections), {}).get(last, last)] = value
    return config_from_dict(tree)


def config_from_dict(tree: Mapping[str, Any]) -> Config:
    """Build a configuration from nested mappings, of any version of this package.

    Args:
        tree: Sections by name; what is missing has its default.

    Returns:
        The configuration.

    Raises:
        ConfigError: If a key does not exist or a value does not fit.
    """
    preset = tree.get("preset", "default")
    if preset not in typing.get_args(Preset):
        raise ConfigError(
            f"preset = {preset!r}: choose one of {', '.join(typing.get_args(Preset))}"
        )
    paper = preset == "paper"
    kinds: dict[str, type] = {
        "data": DataConfig,
        "training": TrainingConfig,
        "sampling": SamplerConfig,
        "diffusion": PaperDiffusionConfig if paper else DiffusionConfig,
        "network": GemsNetConfig if paper else FieldNetConfig,
    }
    _check_keys(tree, [*kinds, "preset"], "")
    tree = with_new_names(tree)
    sections = {name: _build(kind, tree.get(name, {}), name + ".") for name, kind in kinds.items()}
    return Config(preset, **sections)


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return a configuration as nested dicts of plain values.

    Args:
        config: The configuration.
    """
    return dataclasses.asdict(config)


def with_new_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of nested settings in which former names are replaced by present ones.

    `network.steps` of the `paper` preset is dropped: the network has no number of steps of its
    own, it is told t as the process counts it, and the value was never read.

    Args:
        tree: Sections by name.

    Returns:
        The copy.

    Raises:
        ConfigError: If a setting is given by both of its names.
    """
    copy = {k: dict(v) if isinstance(v, Mapping) else v for k, v in tree.items()}
    for section, names in RENAMED.items():
        settings = copy.get(section)
        if not isinstance(settings, dict):
            continue
        for old in names.keys() & settings.keys():
            if names[old] in settings:
                raise ConfigError(
                    f"{section}.{old} and {section}.{names[old]} are one setting: remove {old}"
                )
            settings[names[old]] = settings.pop(old)
    if copy.get("preset") == "paper" and isinstance(copy.get("network"), dict):
        copy["network"].pop("steps", None)
    return copy


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
    values = {key: _fit(hints[key], value, prefix + key) for key, value in tree.items()}
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error


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
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # a file or a fraction
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{key} = {str(value)[:80]!r}: expected {hint.__name__}")
    return value
