"""The whole suite at `smoke`: every table and figure, twice, the second time from what is kept."""

import json
import resource
import time

import pytest
from typer.testing import CliRunner

from crystorus import cli
from crystorus.reproduction.command import EXPERIMENTS
from crystorus.reproduction.publishing import DRAWERS, TEXTS
from crystorus.train.module import TrainingModule

MINUTES = 10


@pytest.mark.slow
def test_every_table_and_figure_in_ten_minutes_of_two_cores(tmp_path, monkeypatch):
    began, children = time.process_time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    words = ["paper", "all", "--budget", "smoke", "--out", str(tmp_path)]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = time.process_time() - began + after.ru_utime - children.ru_utime
    assert spent < 60 * MINUTES  # on one core: half of what two may take
    for name in EXPERIMENTS:
        report = json.loads((tmp_path / f"{name}.json").read_text())
        assert report["budget"]["name"] == "smoke"
        assert f"{name}.json, budget smoke" in result.stdout
        assert (tmp_path / f"{name}.md").read_text() == TEXTS[name](report) + "\n"
        for stem in DRAWERS.get(name, {}):
            assert (tmp_path / f"{stem}.png").stat().st_size > 5000
    table = json.loads((tmp_path / "table4.json").read_text())
    assert len(table["rows"]) == 19
    assert all(len(row["runs"]) == 2 for row in table["rows"])
    validities = {name: run["scores"].get("validity") for row in table["rows"]
                  for name, run in [(row["name"], row["runs"][0])]}  # fmt: skip
    assert all(score and 0 <= score["value"] <= 1 for score in validities.values())

    def never(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(TrainingModule, "training_step", never)
    again = CliRunner().invoke(cli.app, words)
    assert again.exit_code == 0, again.output
    other = json.loads((tmp_path / "table4.json").read_text())
    assert other["rows"] == table["rows"]
