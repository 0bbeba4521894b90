"""The whole suite at `smoke`: every table and figure, twice, the second time from what is kept."""

import json
import re
import resource
import time

import pytest
from commandline import CliRunner

from crystorus import cli
from crystorus.reproduction.command import EXPERIMENTS, OF_CHECKPOINT
from crystorus.reproduction.parts import parts
from crystorus.reproduction.publishing import DRAWERS, TEXTS
from crystorus.reproduction.settings import load_variants
from crystorus.train.loop import Training

MINUTES = 10


def order(*words):
    result = CliRunner().invoke(cli.app, ["paper", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.slow
def test_every_table_and_figure_in_ten_minutes_of_two_cores(tmp_path, monkeypatch):
    out, docs = tmp_path / "out", tmp_path / "docs"
    words = ["all", "--budget", "smoke", "--out", out]
    began, children = time.process_time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    said = order(*words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = time.process_time() - began + after.ru_utime - children.ru_utime
    assert spent < 60 * MINUTES  # on one core: half of what two may take
    for name in EXPERIMENTS:
        assert f"{name}.json, budget smoke: minutes on two cores" in said
        check_files(out, name)
    check_table_4(read(out, "table4"))
    order("publish", "--out", out, "--docs", docs)
    check_page(docs)

    def never(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(Training, "step", never)
    before = read(out, "table4")["rows"], read(docs / "paper", "table2")
    order(*words)
    assert read(out, "table4")["rows"] == before[0]
    said = order("checkpoint", "--budget", "smoke", "--out", out)
    assert [name for name in EXPERIMENTS if f"{name}.json" in said] == list(OF_CHECKPOINT)
    assert [row["name"] for row in read(out, "table2")["rows"]] == ["checkpoint"]
    order("publish", "--out", out, "--docs", docs)
    rows = {row["name"] for part in parts(read(docs / "paper", "table2")) for row in part["rows"]}
    assert rows == {row["name"] for row in before[1]["rows"]}


def check_files(out, name):
    report = read(out, name)
    assert report["budget"]["name"] == "smoke"
    text = (out / f"{name}.md").read_text()
    assert text == TEXTS[name](report) + "\n"
    assert "Budget `smoke`" in text
    for stem in DRAWERS.get(name, {}):
        assert (out / f"{stem}.png").stat().st_size > 5000, stem


def check_table_4(table):
    assert [row["name"] for row in table["rows"]] == list(load_variants())
    assert all(len(row["runs"]) == 2 for row in table["rows"])
    for row in table["rows"]:
        for run in row["runs"]:
            assert 0 <= run["scores"]["validity"]["value"] <= 1, row["name"]


def check_page(docs):
    page = (docs / "paper.md").read_text()
    assert "**This page is of budget `smoke`.**" in page
    assert "not measured" not in page
    for name in EXPERIMENTS:
        report = read(docs / "paper", name)
        assert TEXTS[name](report) in page, name
    shown = set(re.findall(r"\(paper/([\w-]+\.png)\)", page))
    assert shown == {f"{stem}.png" for drawn in DRAWERS.values() for stem in drawn}
    assert all((docs / "paper" / name).exists() for name in shown)
