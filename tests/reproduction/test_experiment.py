"""Options, budgets and the steps of an experiment: done once, kept, gone on with after a kill."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from prototypes import all_prototypes

from crystal_fidelity.commandline import run as run_command
from crystal_fidelity.reading import read_structures
from crystal_fidelity.structures import ReadFailure
from crystorus.config import config_to_dict, load_config
from crystorus.crystal_model import CrystalModel
from crystorus.data.store import build_store
from crystorus.data.writers import cif_text
from crystorus.train.loop import Training
from reproduction import ReproductionError, __main__, experiment, results
from reproduction.experiment import Experiment, prepare, read_crystals
from reproduction.figures import DRAWERS
from reproduction.page import parts, text_of
from reproduction.settings import BUDGETS, PRINTED, VARIANTS, Options, merged, variant_config

ROOT = Path(__file__).parents[2]
FEW = {"training": {"cpu_minutes": 0.0, "epochs": 1, "batch_size": 64, "batch_pairs": 0}}
"""A number of steps instead of a time, so that trainings repeat exactly."""
TINY = dataclasses.replace(
    BUDGETS["smoke"],
    settings={name: merged(tree, FEW) for name, tree in BUDGETS["smoke"].settings.items()},
    compositions=6,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return prepare(Options(out=tmp_path_factory.mktemp("inputs")), TINY)


@pytest.fixture
def run(inputs, tmp_path):
    return Experiment(Options(out=tmp_path), TINY, inputs)


@pytest.fixture
def scored(monkeypatch):
    """Scores that count how often they were asked for."""
    asked = []

    def fake(self, name, key, measure):
        asked.append(name)
        return {"scores": {"validity": {"value": 0.5, "uncertainty": 0.1}}}

    monkeypatch.setattr(Experiment, "kept", fake)
    return asked


def row(run, name, seeds=(0,)):
    return results._variant_row(run, VARIANTS[name], seeds, ablation=True)


def never(*arguments, **options):
    raise AssertionError("a finished step was done again")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("table5", 'Invalid value "table5" for WHAT. Choose from: "table2"'),
        ("table2 --budget cpu", "--budget cpu needs --data TRAIN and --validation VALIDATION"),
        ("table2 --data no.csv", "--data and --validation go together"),
        ("table2 --data no.csv --validation no.csv", "--data no.csv, --validation no.csv does not"),
        ("table2 --held-out no.csv", "--held-out no.csv does not exist"),
        ("table2 --seeds 0,x", "Invalid value for --seeds"),
        ("table2 --seeds 0,0", "--seeds 0,0: give different whole numbers"),
        ("table2 --rows paper-z", "--rows has no paper-z: choose from paper, paper-a"),
        ("table2 --baseline CDVAE", "--baseline CDVAE: write NAME=FILE"),
        ("table2 --baseline A=a --baseline A=b", "--baseline A=a A=b: a name is given twice"),
        ("table2 --baseline A=a", "--baseline A a does not exist"),
        ("table2 --alignn-weights no", "--alignn-weights no does not exist"),
        ("table2 --device abacus", "--device abacus cannot be used"),
        ("table2 --checkpoint no", "no holds no card.json"),
        ("page --docs no", "no/paper holds no results"),
        ("publish --out no", "no holds no results"),
    ],
)
def test_options_that_make_no_sense(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert run_command(__main__.app, words.split()) == (2 if "Invalid" in message else 1)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {message}")
    assert not list(tmp_path.rglob("trainings"))


def test_rows_bring_the_presets_they_are_compared_with():
    assert [v.name for v in Options(rows=("paper-d",)).variants] == ["paper", "paper-d"]
    assert [v.name for v in Options().variants] == list(VARIANTS)


def flat(tree, prefix=""):
    found = {}
    for key, value in tree.items():
        name = prefix + key
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def settings(name, budget="full", *, ablation=False):
    config = variant_config(VARIANTS[name], BUDGETS[budget], ablation=ablation)
    return flat(config_to_dict(config))


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_a_full_training_is_the_configuration_that_comes_along(preset):
    theirs = flat(config_to_dict(load_config(ROOT / "configs" / f"{preset}.toml")))
    ours = settings(preset)
    # The paper knows no space groups: its experiment trains without them.
    groups = {"training.symmetric_fraction"} if preset == "default" else set()
    assert {k for k in ours if ours[k] != theirs[k]} == {"training.sample_every"} | groups


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_variant_changes_what_it_says_and_nothing_else(budget):
    for name, variant in VARIANTS.items():
        ours, base = settings(name, budget), settings(variant.preset, budget)
        changed = {key: ours[key] for key in ours if ours[key] != base[key]}
        assert changed == flat(variant.overrides)
        assert not variant.weights or {key.partition(".")[0] for key in changed} == {"sampling"}
    minutes = {settings(name, budget)["training.cpu_minutes"] for name in VARIANTS}
    assert len(minutes) == 1
    assert budget == "full" or minutes.pop() > 0


def test_ablations_and_printed_numbers_are_the_papers(run):
    """Appendix F: decoding, time, encoder, lattice space, shortest path; 128 epochs at `full`."""
    assert {name: flat(v.overrides) for name, v in VARIANTS.items() if v.printed} == {
        "paper-a": {"network.decode_from": "noisy"},
        "paper-b": {"network.time_embedding": False},
        "paper-c": {"network.encoder": False},
        "paper-d": {"diffusion.lattice_space": "euclidean"},
        "paper-e": {"diffusion.target": "unwrapped"},
    }
    found = results.amounts(run)
    assert (found["seeds"], found["ablation_seeds"]) == (8, 2)
    assert (found["paper"]["epochs"], found["paper"]["ablation_epochs"]) == (512, 128)
    # Of 8 and 11 rows, one and three change the sampler alone.
    assert (found["paper"]["ablation_trainings"], found["paper"]["ablation_samples"]) == (14, 16)
    own = found["default"]
    assert (own["ablation_trainings"], own["ablation_samples"]) == (16, 22)
    assert PRINTED["table2"]["rows"][-1][1:] == ["99.05±0.20", "0.3331±0.0327", "0.1984±0.0086"]
    assert [row[-1] for row in PRINTED["table4"]["rows"]] == [
        "1.602", "48.493", "1.755", "47.094", "2.701", "1.691"
    ]  # fmt: skip


def test_held_out_crystals_are_those_of_the_store_in_its_order(inputs):
    store, crystals = inputs.held_out, read_structures(inputs.compositions)
    rows = [store.ids.index(crystal.name) for crystal in crystals]
    assert len(crystals) == inputs.about["compositions"] == 6
    assert rows == sorted(set(rows))
    for i, crystal in zip(rows, crystals, strict=True):
        one = store.select([i], dtype=torch.float64)
        assert crystal.atomic_numbers.tolist() == one.atomic_numbers.tolist()
        np.testing.assert_allclose(crystal.lattice.T, one.lattice[0], atol=1e-6)


def test_a_folder_takes_one_budget_and_one_set_of_crystals(inputs, tmp_path):
    options, train = Options(out=tmp_path), inputs.train.path
    assert prepare(options, TINY).about == prepare(options, TINY).about == inputs.about
    given = Options(out=tmp_path, data=train, validation=inputs.validation.path)
    with pytest.raises(ReproductionError, match="experiment with budget smoke: choose another"):
        prepare(given, dataclasses.replace(TINY, name="cpu"))
    with pytest.raises(ReproductionError, match="other crystals: choose another --out"):
        prepare(dataclasses.replace(given, held_out=train), TINY)
    (tmp_path / "experiment.json").write_text("{}")
    with pytest.raises(ReproductionError, match=r"experiment\.json is damaged"):
        prepare(options, TINY)


def test_finished_steps_are_not_done_again_and_samplers_share_weights(run, scored, monkeypatch):
    base = row(run, "default")
    assert base["mean"] == {"validity": 0.5}
    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", never)
        ode = row(run, "default-ode")["runs"][0]
        patch.setattr(CrystalModel, "sample", never)
        assert row(run, "default") == base
        with pytest.raises(AssertionError, match="done again"):  # another seed springs the trap
            row(run, "default", seeds=(1,))
    assert ode["training"] == base["runs"][0]["training"]
    samplers = [one["sampling"]["sampler"]["name"] for one in (base["runs"][0], ode)]
    assert samplers == ["bridge", "ode"]
    assert scored == ["scores/default-s0", "scores/default-ode-s0", "scores/default-s0"]


def test_a_result_is_measured_again_when_its_inputs_change(run):
    measured = []

    def measure():
        measured.append(1)
        return {"values": np.array([1.0, np.nan])}

    for key in ({"a": 1}, {"a": 1}, {"a": 2}):
        assert run.kept("scores/x", key, measure) == {"values": [1.0, None]}
    assert len(measured) == 2
    with pytest.raises(ReproductionError, match="y cannot be measured: no network"):
        run.kept("y", {}, lambda: (_ for _ in ()).throw(ImportError("no network")))


def test_an_interrupted_sampling_goes_on_and_what_is_not_finite_keeps_its_place(run, monkeypatch):
    checkpoint, _ = run.train(VARIANTS["default"], 0, ablation=False)
    real, calls = CrystalModel.sample, []

    def spoiled(model, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        crystals = real(model, *arguments, **options)
        lattice = crystals.lattice.clone()
        lattice[0] = float("nan")
        return crystals.with_geometry(lattice, crystals.frac_coords)

    monkeypatch.setattr(CrystalModel, "sample", spoiled)
    plan = experiment.SamplingPlan
    monkeypatch.setattr(experiment, "SamplingPlan", lambda sampler: plan(sampler, batch_atoms=20))
    with pytest.raises(KeyboardInterrupt):
        run.sample(checkpoint, "spoiled", seed=0)
    folder, about = run.sample(checkpoint, "spoiled", seed=0)
    assert about["made"] == 6
    made, wanted = read_crystals(folder), read_structures(run.inputs.compositions)
    lost = [isinstance(entry, ReadFailure) for entry in made]
    assert len(made) == len(wanted) == 6
    assert sum(lost) == len(calls) - 1 < 6
    for ours, theirs, gone in zip(made, wanted, lost, strict=True):
        assert gone or sorted(ours.atomic_numbers) == sorted(theirs.atomic_numbers)


def test_a_training_that_diverges_is_a_result(run, scored, monkeypatch):
    real = Training.backward

    def infinite(training, batch, groups):
        t, losses = real(training, batch, groups)
        return t, dataclasses.replace(losses, torus=losses.torus * float("inf"))

    monkeypatch.setattr(Training, "backward", infinite)
    found = row(run, "paper-a")
    assert found["runs"][0]["diverged"].startswith("step 0 has ")
    assert str(run.options.out) not in found["runs"][0]["diverged"]
    assert (found["mean"], scored) == ({}, [])


@pytest.mark.parametrize("known", [None, 0, 3])
def test_crystals_of_unknown_energy_are_left_out_unless_none_is_known(tmp_path, known):
    with (tmp_path / "all.csv").open("w", newline="", encoding="utf-8") as stream:
        names = ["material_id", "cif"] + [results.ENERGY] * (known is not None)
        writer = csv.DictWriter(stream, names, extrasaction="ignore")
        writer.writeheader()
        for i, (name, crystal) in enumerate(all_prototypes().items()):
            energy = str(0.5 * i) if known and i % known else ""
            cif = cif_text(crystal, name)
            writer.writerow({"material_id": name, "cif": cif, results.ENERGY: energy})
    crystals, energies = results.with_energies(
        build_store(tmp_path / "all.csv", tmp_path / "all.store", n_workers=1), 0, 20
    )
    n = len(all_prototypes())
    kept = [i for i in range(n) if not known or i % known]
    assert len(crystals) == len(kept)
    expected = [0.5 * i if known else np.nan for i in kept]
    np.testing.assert_array_equal(energies, expected)


PROGRAM = """
import dataclasses
from reproduction import __main__, results, settings
from tests.reproduction.test_experiment import TINY
small = {"study_crystals": 16, "noise_levels": (0.0, 0.5), "gallery": 2}
settings.BUDGETS["smoke"] = dataclasses.replace(TINY, **small)
results.RATE_MINUTES = {"smoke": 0.0001}
__main__.main()
"""
WORDS = ["all", "--budget", "smoke", "--seeds", "0", "--rows", "default-ode"]
KILLED_AT = ("training default-s0", "measuring default-ode-s0", "measuring noise", "linear probes")
OF_THE_RUN = {"date", "commit", "training_minutes", "training_cpu_minutes", "cpu_seconds"}
"""What two runs of one experiment do not share."""


def start(out):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *WORDS, "--out", str(out)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def without(tree):
    """Drop what is of the run from a result."""
    if isinstance(tree, dict):
        return {key: without(value) for key, value in tree.items() if key not in OF_THE_RUN}
    return [without(value) for value in tree] if isinstance(tree, list) else tree


@pytest.mark.slow
def test_an_experiment_killed_again_and_again_ends_with_the_same_results(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for step in KILLED_AT:
        process = start(killed)
        assert any(step in line for line in process.stderr), f"it never came to {step}"
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    for out in (killed, whole):
        process = start(out)
        _, said = process.communicate()
        assert process.returncode == 0, said[-2000:]
        assert ("measuring default-s0" in said) == (out == whole)
    for name in results.MEASURES:
        if name != "times":  # rates of a machine are never the same twice
            assert without(read(killed, name)) == without(read(whole, name)), name
    assert (killed / "times.json").exists()
    assert without(read(whole, "table2")) != without(read(whole, "table4"))


@pytest.mark.slow
def test_every_table_and_figure_at_smoke(tmp_path, monkeypatch, capsys):
    out, docs = tmp_path / "out", tmp_path / "docs"

    def say(*words):
        assert run_command(__main__.app, list(map(str, words))) == 0
        return capsys.readouterr().out

    said = say("all", "--out", out)
    for name in results.MEASURES:
        assert f"{name}.json, budget smoke: minutes on two cores" in said
        assert (out / f"{name}.md").read_text() == text_of(read(out, name)) + "\n"
        for stem in DRAWERS.get(name, {}):
            assert (out / f"{stem}.png").stat().st_size > 5000, stem
    table4 = read(out, "table4")["rows"]
    assert [(one["name"], len(one["runs"])) for one in table4] == [(v, 2) for v in VARIANTS]
    for one in table4:
        assert all(0 <= run["scores"]["validity"]["value"] <= 1 for run in one["runs"])
    say("publish", "--out", out, "--docs", docs)
    page = (docs / "paper.md").read_text()
    assert "**This page is of budget `smoke`.**" in page
    assert "not measured" not in page
    published = read(docs / "paper", "table2")["rows"]
    monkeypatch.setattr(Training, "step", never)
    said = say("checkpoint", "--out", out)
    assert [x for x in results.MEASURES if f"{x}.json" in said] == list(__main__.OF_CHECKPOINT)
    assert [one["name"] for one in read(out, "table2")["rows"]] == ["checkpoint"]
    say("publish", "--out", out, "--docs", docs)
    kept = {one["name"] for part in parts(read(docs / "paper", "table2")) for one in part["rows"]}
    assert kept == {one["name"] for one in published}
