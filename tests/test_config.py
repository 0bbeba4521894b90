"""Settings: Table 1 is the default of `paper`, and a mistake is named with its remedy."""

import tomllib
from pathlib import Path

import pytest

from crystorus.config import ConfigError, config_from_dict, config_to_dict, load_config

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
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(CONFIGS / "default.toml", [override])


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="no configuration at"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = [")
    with pytest.raises(ConfigError, match="not readable TOML"):
        load_config(tmp_path / "bad.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not readable TOML"):
        load_config(tmp_path / "bytes.toml")
