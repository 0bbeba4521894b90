"""`crystorus paper`: what it refuses, each in one sentence."""

import errno
import importlib.util
import json

import pytest
from commandline import CliRunner

from crystorus import cli
from crystorus.reproduction import bench as bench_file
from crystorus.reproduction import inputs as inputs_file


def paper(*words):
    return CliRunner().invoke(cli.app, ["paper", *map(str, words)])


def said(result):
    """What one failing command said, on one line."""
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_an_unknown_experiment_is_told_the_known_ones():
    result = paper("table5")
    assert result.exit_code == 2
    for name in ("table2", "figure6", "latent", "all", "page"):
        assert name in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "cpu"], "--budget cpu needs --data TRAIN and --validation VALIDATION"),
        (["--budget", "full"], "`crystorus data get mp-20`"),
        (["--data", "no.csv"], "--data and --validation go together"),
        (["--data", "no.csv", "--validation", "no.csv"], "no.csv does not exist"),
        (["--held-out", "no.csv"], "--held-out needs --data and --validation"),
        (["--seeds", "0,x"], "--seeds 0,x: give different whole numbers"),
        (["--seeds", "0,0"], "--seeds 0,0: give different whole numbers"),
        (["--rows", "paper-z"], "--rows has no 'paper-z': choose from paper, paper-a"),
        (["--baseline", "CDVAE"], "--baseline CDVAE: write NAME=FILE"),
        (["--baseline", "A=a.cif", "--baseline", "A=b.cif"], "--baseline A is given twice"),
        (["--alignn-weights", "no.safetensors"], "no.safetensors does not exist"),
        (["--device", "abacus"], "--device abacus cannot be used"),
    ],
)
def test_orders_that_make_no_sense(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in said(paper("table2", "--out", "out", *words))
    assert not (tmp_path / "out" / "trainings").exists()


def test_a_baseline_that_is_not_there_is_missed_before_anything_is_trained(tmp_path):
    result = paper("table2", "--out", tmp_path / "out", "--baseline", "CDVAE=no.extxyz")
    assert "--baseline no.extxyz does not exist" in said(result)
    assert not (tmp_path / "out" / "trainings").exists()


def test_without_crystal_fidelity(tmp_path, monkeypatch):
    real = importlib.util.find_spec

    def without(name, *more):
        return None if name == "crystal_fidelity" else real(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    message = said(paper("table2", "--out", tmp_path / "out"))
    assert "crystal-fidelity is not installed: pip install 'crystorus[paper]'" in message


def test_a_full_disk(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(inputs_file, "write_whole", full)
    message = said(paper("table2", "--out", tmp_path / "out"))
    assert "No space left on device; make room" in message


def test_ctrl_c(tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_file, "train", interrupted)
    result = paper("table4", "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert "finished work is kept, the same command goes on" in result.stderr


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "experiment.json").write_text("{}")
    assert "experiment.json is damaged" in said(paper("table2", "--out", tmp_path))


def test_a_page_without_results(tmp_path):
    assert "paper holds no results: copy there" in said(paper("page", "--docs", tmp_path))


def test_a_page_of_damaged_results(tmp_path):
    (tmp_path / "paper").mkdir()
    for name in ("table2", "table3", "table4", "latent", *(f"figure{i}" for i in range(1, 7))):
        (tmp_path / "paper" / f"{name}.json").write_text(json.dumps({"experiment": "table9"}))
    assert "is not a result" in said(paper("page", "--docs", tmp_path))
