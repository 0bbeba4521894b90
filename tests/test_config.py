"""Settings: Table 1 is the default of `paper`, and a mistake is named with its remedy."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from crystorus.config import (
    ConfigError,
    SamplerConfig,
    config_from_dict,
    config_to_dict,
    load_config,
)

CONFIGS = Path(__file__).parents[1] / "configs"


def test_paper_defaults_are_table_1():
    c = config_from_dict({"preset": "paper"})
    assert c.training.batch_size == 128
    assert c.training.epochs == 512
    assert c.training.learning_rate == 1e-3
    assert c.training.ema_decay == 0.995
    assert c.network.neighbours == 32
    assert c.diffusion.steps == 100
    assert c.diffusion.cell_betas == (1e-5, 1e-1)
    assert c.diffusion.torus_betas == (1e-6, 2e-3)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda p: p.stem)
def test_every_configuration_that_ships_is_valid(path):
    config = load_config(path)
    assert config_from_dict(config_to_dict(config)) == config
    assert config.preset == tomllib.loads(path.read_text()).get("preset", "default")


def test_overrides_reach_nested_settings():
    c = load_config(
        CONFIGS / "default.toml",
        [
            "diffusion.steps=25",
            "network.sums.cutoff=5",
            "data.train=my file.csv",
            "training.seed=7",
        ],
    )
    assert (c.diffusion.steps, c.network.sums.cutoff) == (25, 5.0)
    assert (c.data.train, c.training.seed) == ("my file.csv", 7)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("diffusion.step=25", "did you mean diffusion.steps"),
        ("trainign.seed=1", "did you mean training"),
        ("diffusion.steps=many", "expected int"),
        ("diffusion.steps=true", "expected int"),
        ("diffusion.target=shortish", "choose one of"),
        ("network.sums.radial=[1, 2]", "give 3 values"),
        ("preset=papers", "choose one of"),
        ("diffusion", "write it as section.key=value"),
        ("preset.deeper=1", "is a value, not a section"),
        ("network=3", "must be a section"),
        ("network.channels=1000000", "network.channels = 1000000: give at most 1024"),
        ("network.blocks=1000", "network.blocks = 1000: give at most 64"),
        ("network.sums.radial=[16, 10, 9999]", "give at most 1024"),
        ("network.sums.cutoff=nan", "network.sums.cutoff = nan: give a number above 0"),
        ("network.sums.reciprocal_cutoff=1e6", "at most 30"),
        ("diffusion.steps=10000000000", "diffusion.steps = 10000000000: give at most 100000"),
        ("diffusion.steps=" + "[" * 100_000, "expected int"),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(CONFIGS / "default.toml", [override])


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r'no configuration at .* preset = "default"'):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = [")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    for name in ("bad.toml", "deep.toml"):
        with pytest.raises(ConfigError, match="not readable TOML"):
            load_config(tmp_path / name)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not readable TOML"):
        load_config(tmp_path / "bytes.toml")


FORMER = {"first": 0.8, "last": 0.2, "stretch": 1.5, "settle": 3}
PRESENT = SamplerConfig(
    first_fraction=0.8, last_fraction=0.2, over_relaxation=1.5, final_refinement_steps=3
)


def test_former_names_are_read_from_cards_files_and_overrides(tmp_path):
    assert config_from_dict({"sampling": FORMER}).sampling == PRESENT
    assert config_from_dict({"sampling": FORMER}).sampling == PRESENT
    (tmp_path / "old.toml").write_text("[sampling]\nfirst = 0.8\nlast = 0.9\nstretch = 1.5\n")
    words = ["sampling.last=0.2", "sampling.settle=3"]
    assert load_config(tmp_path / "old.toml", words).sampling == PRESENT
    both = {"stretch": 1.5, "over_relaxation": 1.5}
    with pytest.raises(ConfigError, match="are one setting: remove stretch"):
        config_from_dict({"sampling": both})


def test_steps_of_the_papers_network_are_no_setting(tmp_path):
    """Old cards have them; they were never read, so a file in which they differ is refused."""
    old = {"preset": "paper", "network": {"steps": 100}, "diffusion": {"steps": 20}}
    assert config_from_dict(old).diffusion.steps == 20
    (tmp_path / "p.toml").write_text('preset = "paper"\n[network]\nsteps = 100\n')
    assert load_config(tmp_path / "p.toml").diffusion.steps == 100
    (tmp_path / "p.toml").write_text('preset = "paper"\n[network]\nsteps = 50\n')
    with pytest.raises(ConfigError, match=r"network.steps = 50 but diffusion.steps = 100.*remove"):
        load_config(tmp_path / "p.toml")
    with pytest.raises(ConfigError, match=r"unknown setting network\.steps"):
        config_from_dict({"network": {"steps": 100}})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"first_fraction": 0.0}, "first_fraction = 0.0.*above 0 to 1"),
        ({"first_fraction": 1.1}, "first_fraction = 1.1.*above 0 to 1"),
        ({"last_fraction": 1.0}, "last_fraction = 1.0.*below 1"),
        ({"over_relaxation": float("inf")}, "over_relaxation = inf.*from 0 up"),
        ({"temperature": -1.0}, "temperature = -1.0.*from 0 up"),
        ({"anti_annealing": float("nan")}, "anti_annealing = nan.*finite"),
        ({"anti_annealing": -1.0}, "anti_annealing = -1.*finite"),
        ({"final_refinement_steps": -1}, "final_refinement_steps = -1.*0 or more"),
    ],
)
def test_impossible_samplers_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        SamplerConfig(**settings)
    with pytest.raises(ConfigError, match=r"sampling\." + words):
        config_from_dict({"sampling": settings})


def test_settings_are_read_without_torch():
    code = "import sys, crystorus.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
