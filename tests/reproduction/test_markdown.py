"""What tables say, against arithmetic done here."""

import copy

import numpy as np
import pytest

from crystorus.reproduction import markdown
from crystorus.reproduction.settings import load_printed
from crystorus.reproduction.tables import summary
from crystorus.reproduction.verdicts import of_ablations


def run(seed, **values):
    scores = {k: {"value": v, "uncertainty": 0.1, "real": None} for k, v in values.items()}
    return {"seed": seed, "scores": scores}


def row(name, preset, printed, *runs):
    about = {"name": name, "label": name, "preset": preset, "printed": printed}
    return about | {"runs": list(runs)} | summary(runs)


@pytest.fixture
def report():
    rows = [
        row("paper", "paper", 0, run(0, validity=0.90, density_emd=0.30),
            run(1, validity=0.92, density_emd=0.34)),
        row("paper-a", "paper", 1, run(0, validity=0.20, density_emd=0.31),
            run(1, validity=0.22, density_emd=0.33)),
        row("paper-d", "paper", 4, run(0, validity=0.99, density_emd=9.0),
            run(1, validity=0.99, density_emd=9.1)),
        row("default", "default", None, run(0, validity=0.95, density_emd=0.1),
            run(1, validity=0.96, density_emd=0.1)),
    ]  # fmt: skip
    return {
        "experiment": "table4",
        "budget": {"name": "smoke", "about": "nothing"},
        "seeds": [0, 1],
        "inputs": {"compositions": 3},
        "provenance": {
            "hardware": "a machine",
            "programs": {"torch": "2"},
            "commit": "0123456789abcdef",
            "date": "2026-01-01T00:00:00",
        },
        "printed": load_printed(),
        "rows": rows,
    }


def test_mean_and_deviation_are_numpys():
    values = [0.1, 0.4, 0.45]
    found = summary([run(i, validity=v) for i, v in enumerate(values)])
    assert found["mean"]["validity"] == pytest.approx(np.mean(values))
    assert found["deviation"]["validity"] == pytest.approx(np.std(values, ddof=1))


def test_a_score_that_one_run_lacks_has_no_mean():
    runs = [run(0, validity=0.1, match_rmse=0.2), run(1, validity=0.1)]
    runs.append({"seed": 2, "scores": {"validity": {"value": None, "uncertainty": None}}})
    assert summary(runs)["mean"] == {}
    assert summary(runs[:2])["mean"] == {"validity": pytest.approx(0.1)}


def test_an_effect_beyond_the_noise_has_a_direction_beside_the_papers(report):
    assert markdown.effect(report, "paper-a", "validity") == "worse, -70 ± 1.4 (paper: worse)"
    assert markdown.effect(report, "paper-d", "validity").startswith("better, +8 ")
    assert markdown.effect(report, "paper-d", "validity").endswith("(paper: better)")
    assert markdown.effect(report, "paper-d", "density_emd").startswith("worse, +8.73 ")


def test_an_effect_within_the_noise_has_none(report):
    assert markdown.effect(report, "paper-a", "density_emd").startswith("none, +0 ")


def test_one_training_shows_no_effect(report):
    for one in report["rows"]:
        one["runs"] = one["runs"][:1]
        one.update(summary(one["runs"]))
    assert markdown.effect(report, "paper-a", "validity").startswith("none, -70 ")


def test_equal_seeds_of_one_row_do_not_hide_the_noise_of_the_others(report):
    """Two seeds that agree by chance have no deviation; the others' is taken."""
    for one in report["rows"][1]["runs"]:
        one["scores"]["density_emd"]["value"] = 0.33
    report["rows"][1].update(summary(report["rows"][1]["runs"]))
    assert markdown.effect(report, "paper-a", "density_emd").startswith("none, +0.01 ")


def test_the_table_shows_printed_and_measured_rows(report):
    text = markdown.table4(report)
    assert "| paper-a | printed | 15.23 | 223.327 |" in text
    assert "| paper-a | measured | 21.0 ± 1.4 | 0.320 ± 0.014 |" in text
    assert "Budget `smoke`" in text
    assert "seeds 0, 1" in text


def test_a_training_that_diverged_is_shown(report):
    report["rows"][1]["runs"][0] = {"seed": 0, "diverged": "step 3 has a loss", "scores": {}}
    report["rows"][1].update(summary(report["rows"][1]["runs"]))
    assert "| paper-a | measured, 1 diverged | – |" in markdown.table4(report)
    assert markdown.effect(report, "paper-a", "validity").startswith("diverged")


def test_rendering_leaves_the_result_alone_and_follows_it(report):
    before = copy.deepcopy(report)
    text = markdown.table4(report) + markdown.effects(report)
    assert report == before
    report["rows"][0]["mean"]["validity"] += 0.05
    assert markdown.table4(report) + markdown.effects(report) != text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.3331, "0.333"), (57723.777, "57724"), (12.345, "12.3"), (-0.02, "-0.0200"),
     (4.2e-6, "4.20e-06"), (1e7, "1.00e+07")],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert markdown.number(value) == text


def test_a_row_that_was_left_out_is_not_measured(report):
    assert markdown.effect(report, "paper-e", "validity") == "not measured"
    assert markdown.value(report, "paper-e", "validity") == "not measured"
    assert "(e)" not in markdown.table4(report)


def test_verdicts_name_the_scores_that_count(report):
    assert of_ablations(report, "paper").splitlines() == [
        "- paper-a: worse by validity",
        "- paper-d: worse by density EMD; better by validity",
    ]
    assert of_ablations(report, "default") == ""
    report["rows"][2]["runs"][0]["diverged"] = "step 0"
    assert "- paper-d: diverged by validity" in of_ablations(report, "paper")
