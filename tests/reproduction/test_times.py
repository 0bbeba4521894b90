"""Expected times: the arithmetic, and that they are of the full experiment's own networks."""

import pytest

from crystorus.config import config_from_dict
from crystorus.crystal_model import build_denoiser, build_diffusion
from crystorus.data.store import open_store
from crystorus.diffusion.cell_prior import fit_cell_statistics
from crystorus.reproduction import captions
from crystorus.reproduction.bench import Bench
from crystorus.reproduction.inputs import Sources, prepare
from crystorus.reproduction.settings import load_budget
from crystorus.reproduction.times import amounts, times_study

HOUR = 3600


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    out = tmp_path_factory.mktemp("times")
    smoke = load_budget("smoke")
    return Bench(out, smoke, prepare(out, smoke, Sources()), "cpu", None, lambda step: None)


def test_the_full_experiment_is_the_papers(bench):
    found = amounts(bench)
    assert (found["seeds"], found["ablation_seeds"]) == (8, 2)
    assert (found["paper"]["epochs"], found["paper"]["ablation_epochs"]) == (512, 128)
    # Of 8 and 11 rows, one and three change the sampler alone.
    assert (found["paper"]["ablation_trainings"], found["paper"]["ablation_samples"]) == (14, 16)
    assert (found["default"]["ablation_trainings"], found["default"]["ablation_samples"]) == (
        16,
        22,
    )


def test_times_follow_from_rates(bench):
    report = {
        "experiment": "times",
        "budget": {"name": "smoke", "about": "nothing"},
        "seeds": [0],
        "inputs": {"compositions": 3},
        "provenance": {
            "hardware": "a machine",
            "programs": {"torch": "2"},
            "commit": "0123456789abcdef",
            "date": "2026-01-01T00:00:00",
        },
        "amounts": amounts(bench) | {"train": 1000, "compositions": 100},
        "presets": {
            "paper": {"crystals_per_second": 10.0, "seconds_per_step": 0.036},
            "default": {"crystals_per_second": 100.0, "seconds_per_step": 0.0036},
        },
    }
    cells = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:]
        for line in captions.times(report).splitlines()
        if line.startswith("|")
    }
    assert cells["training at full size, measured"] == ["10 crystals/s", "100 crystals/s"]
    assert cells["a step of sampling one crystal, measured"] == ["36 ms", "3.6 ms"]
    # 512 000 crystals at 10 a second are 14.2 hours.
    assert cells["a training of 512 epochs (Tables 2 and 3, one seed)"] == [
        "14 hours",
        "85 minutes",
    ]
    assert cells["100 crystals sampled by one model"] == ["6 minutes", "36 s"]
    assert cells["Tables 2 and 3, 8 seeds"] == ["4.8 days", "11 hours"]
    assert cells["a training of 128 epochs (Table 4)"] == ["3.6 hours", "21 minutes"]
    # 14 trainings of 3.56 hours and 16 sets of 6 minutes; 16 of 21.3 minutes and 22 of 36 s.
    assert cells["Table 4, 2 seeds"] == ["2.1 days", "5.9 hours"]


@pytest.mark.slow
def test_rates_are_those_of_the_networks_at_full_size(bench):
    report = times_study(bench)
    for name, found in report["presets"].items():
        config = config_from_dict({"preset": name})
        crystals = open_store(bench.inputs.train)
        statistics = fit_cell_statistics(crystals.select(range(len(crystals))))
        network = build_denoiser(config, build_diffusion(config, statistics))
        size = sum(p.numel() for p in network.parameters())
        assert found["training"]["parameters"] == size
        assert found["sampling"]["made"] == 4
        rate = found["training"]["crystals_seen"] / found["training"]["training_cpu_minutes"] / 60
        assert found["crystals_per_second"] == pytest.approx(rate)
        assert 0 < found["seconds_per_step"] < 10
    slow, fast = (report["presets"][name]["crystals_per_second"] for name in ("paper", "default"))
    assert slow < fast
