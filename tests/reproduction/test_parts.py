"""Rows measured later stand beside the published ones, each compared within its measurement."""

import copy
import json

import pytest

from crystorus.reproduction import markdown
from crystorus.reproduction.errors import PaperError
from crystorus.reproduction.parts import beside, parts
from crystorus.reproduction.publishing import publish
from crystorus.reproduction.settings import load_printed
from crystorus.reproduction.tables import summary

INPUTS = {"compositions": 3, "train": {"sha256": "1" * 64}}


def row(name, *validities):
    runs = [{"seed": i, "scores": {"validity": {"value": v, "uncertainty": 0.1, "real": None}}}
            for i, v in enumerate(validities)]  # fmt: skip
    about = {"name": name, "label": name, "preset": name.split("-")[0], "printed": None}
    return about | {"runs": runs} | summary(runs)


def report(commit, *rows, experiment="table4", inputs=INPUTS):
    return {
        "experiment": experiment,
        "budget": {"name": "smoke", "about": "nothing"},
        "seeds": [0, 1],
        "inputs": inputs,
        "provenance": {
            "hardware": "a machine",
            "programs": {"torch": "2"},
            "commit": commit * 10,
            "date": "2026-01-01T00:00:00",
        },
        "printed": load_printed(),
        "rows": list(rows),
    }


@pytest.fixture
def first():
    values = {"paper": 0.9, "paper-a": 0.2, "default": 0.8, "default-old": 0.7, "default-both": 0.1}
    return report("a", *(row(name, value, value + 0.02) for name, value in values.items()))


@pytest.fixture
def second():
    values = {"default": 0.6, "default-new": 0.5, "default-both": 0.6}
    return report("b", *(row(name, value, value + 0.02) for name, value in values.items()))


def names(report):
    return [[row["name"] for row in part["rows"]] for part in parts(report)]


def test_rows_measured_again_replace_the_published_ones_and_no_others(first, second):
    assert names(beside(second, first)) == [
        ["paper", "paper-a", "default", "default-old"],
        ["default", "default-new", "default-both"],
    ]


def test_a_preset_without_rows_to_compare_is_dropped_when_measured_again(first, second):
    last = report("c", row("default", 0.6, 0.62), row("default-old", 0.7, 0.72))
    assert names(beside(last, beside(second, first))) == [
        ["paper", "paper-a"],
        ["default", "default-new", "default-both"],
        ["default", "default-old"],
    ]


def test_a_whole_measurement_leaves_nothing_of_the_earlier_ones(first, second):
    assert beside(first, beside(second, first)) != first  # default-new was not measured again
    whole = first | {"rows": [*first["rows"], row("default-new", 0.5, 0.52)]}
    assert beside(whole, beside(second, first)) == whole


def test_effects_are_taken_within_one_measurement(first, second):
    both = beside(second, first)
    assert markdown.effect(both, "default-old", "validity").startswith("worse, -10 ±")
    assert markdown.effect(both, "default-new", "validity").startswith("worse, -10 ±")
    # Across measurements the same numbers would say the opposite of the second.
    mixed = copy.deepcopy(second)
    mixed["rows"][0] = first["rows"][2]
    assert markdown.effect(mixed, "default-new", "validity").startswith("worse, -30 ±")
    assert markdown.value(both, "default", "validity") == markdown.value(
        second, "default", "validity"
    )
    assert markdown.effect(both, "default-never", "validity") == markdown.NOT_MEASURED


def test_every_row_says_which_commit_made_it(first, second):
    text = markdown.table4(beside(second, first))
    old, new = text.split("*Budget")[1:]
    assert "commit aaaaaaaaaa" in old
    assert "commit bbbbbbbbbb" in new
    assert "default-old" in old
    assert "default-new" not in old
    assert "default-new" in new
    assert markdown.effects(beside(second, first)).count("\n") == 1 + 4


def test_other_crystals_or_another_budget_are_refused(first, second):
    with pytest.raises(
        PaperError, match=r"rows paper, paper-a, .* have other inputs: measure them"
    ):
        beside(second | {"inputs": {"compositions": 4}}, first)
    with pytest.raises(PaperError, match="have other budget"):
        beside(second | {"budget": {"name": "cpu"}}, first)
    whole = first | {"rows": [*first["rows"], row("default-new", 0.5, 0.52)], "inputs": {}}
    assert beside(whole, beside(second, first)) == whole


def test_publishing_the_checkpoints_row_keeps_the_trainings(tmp_path):
    out, docs = tmp_path / "out", tmp_path / "docs"
    out.mkdir()
    for commit, rows in (
        ("a", [row("paper", 0.9, 0.9), row("checkpoint", 0.5)]),
        ("b", [row("checkpoint", 0.97)]),
    ):
        made = report(commit, *rows, experiment="table2")
        (out / "table2.json").write_text(json.dumps(made))
        publish(out, docs)
    text = (docs / "paper.md").read_text()
    assert "| checkpoint | measured | 97.0 ± 10 |" in text
    assert "50.0" not in text.partition("## Table 4")[0]
    assert "paper: *Budget" in text
    assert "checkpoint: *Budget" in text
    again = (docs / "paper" / "table2.json").read_text()
    publish(out, docs)
    assert (docs / "paper" / "table2.json").read_text() == again
