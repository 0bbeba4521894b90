"""What budgets and variants are, against the configurations that come along and the paper."""

import pytest

from crystorus.config import config_to_dict, load_config
from crystorus.reproduction.settings import (
    BUDGETS,
    load_budget,
    load_printed,
    load_variants,
    variant_config,
)


def flat(tree, prefix=""):
    found = {}
    for key, value in tree.items():
        found |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return found


def settings(name, budget="full", *, ablation=False):
    config = variant_config(load_variants()[name], load_budget(budget), ablation=ablation, extra={})
    return flat(config_to_dict(config))


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_a_full_training_is_the_configuration_that_comes_along(request, preset):
    path = request.config.rootpath / "configs" / f"{preset}.toml"
    ours, theirs = settings(preset), flat(config_to_dict(load_config(path)))
    different = {key for key in ours if ours[key] != theirs[key]}
    assert different == {"training.sample_every"}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", load_variants())
def test_a_variant_changes_what_it_says_and_nothing_else(budget, name):
    variant = load_variants()[name]
    ours, base = settings(name, budget), settings(variant.preset, budget)
    changed = {key: ours[key] for key in ours if ours[key] != base[key]}
    assert changed == flat(variant.overrides)
    trained = variant.weights == name
    assert trained or {key.partition(".")[0] for key in changed} == {"sampling"}


def test_the_ablations_are_the_papers_five():
    """Appendix F: decoding, time, encoder, lattice space, shortest path; 128 epochs at `full`."""
    changed = {
        name: flat(variant.overrides)
        for name, variant in load_variants().items()
        if variant.printed
    }
    assert changed == {
        "paper-a": {"network.decode_from": "noisy"},
        "paper-b": {"network.time_embedding": False},
        "paper-c": {"network.encoder": False},
        "paper-d": {"diffusion.lattice_space": "euclidean"},
        "paper-e": {"diffusion.target": "unwrapped"},
    }
    assert settings("paper-a", ablation=True)["training.epochs"] == 128
    assert settings("paper", ablation=False)["training.epochs"] == 512
    assert load_budget("full").seeds == tuple(range(8))


def test_all_rows_of_a_budget_have_the_same_processor_time():
    for budget in ("smoke", "cpu"):
        minutes = {settings(name, budget)["training.cpu_minutes"] for name in load_variants()}
        assert len(minutes) == 1
        assert minutes.pop() > 0


def test_the_printed_numbers_are_the_papers():
    printed = load_printed()
    assert printed["table2"]["rows"][-1] == [
        "GemsDiff",
        "99.05±0.20",
        "0.3331±0.0327",
        "0.1984±0.0086",
    ]
    assert printed["table3"]["rows"][-1] == ["GemsDiff", "1.509±0.115"]
    assert [row[-1] for row in printed["table4"]["rows"]] == [
        "1.602", "48.493", "1.755", "47.094", "2.701", "1.691"
    ]  # fmt: skip
