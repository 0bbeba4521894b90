import csv
import errno
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import ase.data
import ase.io
import moyopy
import pytest
import torch
from explained import columns_explained
from fake_model import FakeModel
from prototypes import cscl, rocksalt

from crystal_fidelity.cells import min_distance_ratio
from crystorus.config import SamplerConfig
from crystorus.data.compositions import Composition
from crystorus.data.convert import crystals_to_atoms, split
from crystorus.data.writers import csv_text
from crystorus.errors import FileError, GenerationError, OutputError
from crystorus.geometry import Crystals
from crystorus.sample.options import SampleOptions
from crystorus.sample.output import (
    COLUMNS,
    OutputFolder,
    describe,
    file_stem,
    run_settings,
)
from crystorus.sample.requests import make_requests
from crystorus.sample.sampler import GeneratedCrystals, SamplingPlan, make

LIFEO2 = Composition.of((3, 26, 8, 8))
SRTIO3 = Composition.of((38, 38, 22, 22) + (8,) * 6)
OXYGEN = Composition.of((8, 8))


def run(
    path, model=None, *, n=4, seed=0, symprec=0.1, keep_trajectory=False, batch_atoms=16, **how
):
    """Make crystals into a folder; returns (rows, made now, kept from before)."""
    model = model or FakeModel()
    requests = make_requests([SRTIO3, OXYGEN, LIFEO2], n=n, seed=seed)
    options = SampleOptions(n=n, seed=seed, symprec=symprec, keep_trajectory=keep_trajectory)
    plan = SamplingPlan(
        SamplerConfig(steps=2), keep_trajectory=keep_trajectory, batch_atoms=batch_atoms
    )
    settings = run_settings(requests, plan, model, options)
    with OutputFolder(path, settings, total=len(requests), **how) as folder:
        kept = len(requests) if folder.run.complete else len(folder.done)
        if not folder.run.complete:
            left = [request for request in requests if request.index not in folder.done]
            for part in make(model, left, plan):
                folder.commit(part, symprec=symprec)
            folder.finish()
        return folder.rows(), len(requests) - kept, kept


def contents(path):
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def test_one_index_names_the_same_crystal_in_every_file(tmp_path):
    _, made, _ = run(tmp_path / "out")
    frames = ase.io.read(tmp_path / "out/crystals.extxyz", ":")
    rows = list(csv.DictReader((tmp_path / "out/table.csv").open()))
    assert made == len(frames) == len(rows) == 12
    for index, (frame, row) in enumerate(zip(frames, rows, strict=True)):
        assert frame.info["index"] == int(row["index"]) == index
        cif = ase.io.read(tmp_path / "out" / row["cif_file"])
        assert row["cif_file"].startswith(f"cif/{index:05d}-")
        assert sorted(cif.numbers) == sorted(frame.numbers)
        assert cif.get_volume() == pytest.approx(frame.get_volume(), rel=1e-6)
        assert float(row["volume"]) == pytest.approx(frame.get_volume(), abs=1e-3)
        nearest = [d for d in frame.get_all_distances(mic=True).flat if d > 0]
        assert float(row["least_distance"]) <= min(nearest) + 1e-3
        symmetrised = ase.io.read(tmp_path / "out" / row["cif_symmetrised_file"])
        assert row["valid"] in ("True", "False")
        assert int(row["seed"]) == frame.info["seed"]
        assert symmetrised.symbols.formula.reduce()[0] == frame.symbols.formula.reduce()[0]


def test_the_composition_written_is_the_one_asked_for(tmp_path):
    run(tmp_path / "out")
    for frame in ase.io.read(tmp_path / "out/crystals.extxyz", ":"):
        expected, units = {"LiFeO2": ("LiFeO2", 1), "SrTiO3": ("Sr2Ti2O6", 2), "O": ("O2", 2)}[
            frame.info["formula"]
        ]
        assert frame.info["formula_units"] == units
        assert frame.symbols.formula.count() == ase.formula.Formula(expected).count()


def test_a_model_that_changes_a_composition_is_stopped_before_anything_is_written(tmp_path):
    class Cheat(FakeModel):
        def sample(self, atomic_numbers, n_atoms, **rest):
            return super().sample(torch.full_like(atomic_numbers, 1), n_atoms, **rest)

    with pytest.raises(GenerationError, match="changed a composition"):
        run(tmp_path / "out", Cheat())
    assert not list((tmp_path / "out").rglob("*.cif"))


def test_the_symmetrised_file_names_its_tolerance(tmp_path):
    run(tmp_path / "out", symprec=0.25)
    for file in (tmp_path / "out/cif-symmetrised").iterdir():
        assert "0.25 Å" in file.read_text()


def test_batch_size_changes_nothing(tmp_path):
    run(tmp_path / "a", batch_atoms=1)
    run(tmp_path / "b", batch_atoms=40)
    run(tmp_path / "c", FakeModel(memory_atoms=12), batch_atoms=40)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


def test_another_seed_gives_other_crystals(tmp_path):
    run(tmp_path / "a", seed=0)
    run(tmp_path / "b", seed=1)
    first, second = (contents(tmp_path / name)["crystals.extxyz"] for name in "ab")
    assert first != second


@pytest.mark.parametrize("broken_at", [0, 1, 3])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(tmp_path, broken_at):
    run(tmp_path / "whole")
    model = FakeModel(failure=KeyboardInterrupt(), failing_batch=broken_at)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", model)
    made = sum(model.batches)
    assert len(list(csv.DictReader((tmp_path / "out/table.csv").open()))) == made
    assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "interrupted"
    assert run(tmp_path / "out")[1:] == (12 - made, made)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_run_is_not_made_again(tmp_path):
    run(tmp_path / "out")
    before = contents(tmp_path / "out")
    model = FakeModel()
    rows, *counts = run(tmp_path / "out", model)
    assert (counts, model.batches) == ([0, 12], [])
    assert len(rows) == 12
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda one: one["files"].update({"../../outside": "x"}),
        lambda one: one["files"].update({"cif/../table.csv": "x"}),
        lambda one: one["row"].update({"formula": "../../x"}),
        lambda one: one["row"].pop("seed"),
        lambda one: one["row"].update({"more": "x"}),
        lambda one: one.update(index=99),
        lambda one: one.update(frame=None),
    ],
)
def test_parts_that_this_run_did_not_write_are_made_again(tmp_path, damage):
    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "in/out", FakeModel(failure=KeyboardInterrupt(), failing_batch=1))
    (part,) = (tmp_path / "in/out/.parts").iterdir()
    records = json.loads(part.read_text())
    damage(records[0])
    part.write_text(json.dumps(records))
    assert run(tmp_path / "in/out")[1:] == (12, 0)
    assert contents(tmp_path / "in/out") == contents(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "whole"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "its seed is 0, yours is 1"),
        ({"n": 5}, "its crystals is 12, yours is 15"),
        ({"symprec": 0.01}, "symprec_angstrom is 0.1, yours is 0.01"),
    ],
)
def test_a_folder_of_another_run_is_refused_and_left_alone(tmp_path, change, words):
    run(tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(OutputError, match=words) as caught:
        run(tmp_path / "out", **change)
    assert "--out" in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert contents(tmp_path / "out") == before


def test_overwrite_replaces_another_run_and_nothing_else(tmp_path):
    run(tmp_path / "out", seed=1)
    (tmp_path / "out/notes.txt").write_text("mine")
    run(tmp_path / "out", n=1, overwrite=True)
    run(tmp_path / "fresh", n=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh") | {"notes.txt": b"mine"}


def test_files_of_unknown_origin_are_refused(tmp_path):
    (tmp_path / "table.csv").write_text("precious")
    with pytest.raises(OutputError, match=r"already holds table\.csv of unknown origin"):
        run(tmp_path)
    assert contents(tmp_path) == {"table.csv": b"precious"}


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(FileError, match=r"out.*choose another --out"):
        run(tmp_path / "out")


def test_two_runs_cannot_write_one_folder_at_once(tmp_path):
    requests = make_requests([OXYGEN])
    plan = SamplingPlan(SamplerConfig(steps=2))
    settings = run_settings(requests, plan, FakeModel(), SampleOptions())
    with (
        OutputFolder(tmp_path, settings, total=1),
        pytest.raises(OutputError, match="by another run"),
    ):
        OutputFolder(tmp_path, settings, total=1)
    OutputFolder(tmp_path, settings, total=1).__exit__(None, None, None)


@pytest.mark.parametrize("survives", [0, 3, 8, 20])
def test_a_full_disk_is_one_message_and_loses_nothing_finished(tmp_path, monkeypatch, survives):
    run(tmp_path / "whole")
    written = 0

    def fsync(descriptor):
        nonlocal written
        written += 1
        if written > survives:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fsync)
        with pytest.raises(FileError, match=r"no space left.*make room.*kept"):
            run(tmp_path / "out")
    assert not list((tmp_path / "out").rglob(".*.part"))
    run(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_crystal_that_is_not_finite_keeps_its_line_and_has_no_files(tmp_path):
    class Broken(FakeModel):
        def _crystal(self, numbers, seed):
            crystal = super()._crystal(numbers, seed)
            if len(numbers) == 2:
                crystal.lattice[:] = float("nan")
            return crystal

    rows, *_ = run(tmp_path / "out", Broken())
    lost = [row for row in rows if row["formula"] == "O"]
    assert [(row["valid"], row["cif_file"], row["volume"]) for row in lost] == [
        ("False", "", "")
    ] * 4
    assert len(ase.io.read(tmp_path / "out/crystals.extxyz", ":")) == 8
    assert [row["index"] for row in rows] == [str(i) for i in range(12)]


def test_every_step_is_kept_when_asked_for(tmp_path):
    run(tmp_path / "out", FakeModel(memory_atoms=12), keep_trajectory=True)
    files = sorted((tmp_path / "out/trajectories").iterdir())
    last = ase.io.read(tmp_path / "out/crystals.extxyz", ":")
    assert [int(file.name.split("-")[0]) for file in files] == list(range(12))
    for file, crystal in zip(files, last, strict=True):
        steps = ase.io.read(file, ":")
        assert len(steps) == 2
        assert (steps[-1].numbers == crystal.numbers).all()
        assert steps[-1].positions == pytest.approx(crystal.positions)


def test_names_sort_like_their_indices_beyond_a_hundred_thousand():
    request = make_requests([OXYGEN])[0]
    assert file_stem(request.index, "O", 12) == "00000-O"
    assert file_stem(request.index, "O", 1_000_001) == "0000000-O"


def test_a_folder_of_an_earlier_version_is_refused_with_a_remedy(tmp_path):
    run(tmp_path / "out")
    record = json.loads((tmp_path / "out/run.json").read_text())
    del record["kind"], record["settings"]["layout"]
    (tmp_path / "out/run.json").write_text(json.dumps(record))
    with pytest.raises(OutputError, match=r"another version.*other columns.*--overwrite"):
        run(tmp_path / "out")
    assert run(tmp_path / "out", overwrite=True)[1] == 12


def test_repeats_within_a_run_are_named_when_it_is_finished(tmp_path):
    salt = rocksalt().to(dtype=torch.float32)
    shifted = replace(salt, frac_coords=salt.frac_coords + 0.2)
    corners = replace(cscl().to(dtype=torch.float32), atomic_numbers=salt.atomic_numbers)
    broken = replace(salt, lattice=torch.full((1, 3, 3), torch.nan))
    several = [salt, corners, broken, shifted, corners]
    requests = make_requests([Composition.of((11, 17))], n=5)
    plan = SamplingPlan(SamplerConfig(steps=2))
    settings = run_settings(requests, plan, FakeModel(), SampleOptions(n=5))
    made = GeneratedCrystals(Crystals.concat(several), requests, (), (math.nan,) * 5)
    with OutputFolder(tmp_path / "out", settings, total=5) as folder:
        folder.commit(made[3:], symprec=0.1)
        folder.commit(made[:3], symprec=0.1)
        assert [row["same_as"] for row in folder.rows()] == [""] * 5
        folder.finish()
        assert [row["same_as"] for row in folder.rows()] == ["", "", "", "0", "1"]
    assert len(made.select([0, 1, 3, 4]).distinct()) == 2


def described(crystal, composition, name="noise"):
    (request,) = make_requests([composition])
    made = GeneratedCrystals(crystal, (request,), (), (math.nan,))
    return describe(made, total=1, symprec=0.1)


def test_distances_are_compared_with_covalent_radii():
    salt = rocksalt()
    radii = ase.data.covalent_radii[[11, 17]].sum()
    (atoms,) = crystals_to_atoms(salt)
    apart = atoms.get_distance(0, 1, mic=True)
    assert min_distance_ratio(split(salt)[0]) == pytest.approx(apart / radii, rel=1e-3)
    row = described(salt.to(dtype=torch.float32), Composition.of([11, 17])).row
    assert float(row["min_distance_ratio"]) == pytest.approx(apart / radii, abs=1e-3)
    assert (row["origin"], row["known_as"]) == ("not compared", "")


def test_a_cell_is_reduced_once_for_a_line_of_the_table(monkeypatch):
    cells = []
    reduce = moyopy.niggli_reduce
    monkeypatch.setattr(moyopy, "niggli_reduce", lambda cell: cells.append(cell) or reduce(cell))
    row = described(rocksalt().to(dtype=torch.float32), Composition.of([11, 17])).row
    assert (row["space_group"], row["valid"], len(cells)) == ("Fm-3m", "True", 1)


def test_own_images_count_as_neighbours():
    wire = Crystals(
        torch.diag(torch.tensor([1.0, 9.0, 9.0]))[None],
        torch.zeros(1, 3),
        torch.tensor([26]),
        torch.tensor([1]),
    )
    assert min_distance_ratio(split(wire)[0]) == pytest.approx(1 / (2 * 1.32), rel=1e-3)


def test_the_table_holds_nothing_that_a_spreadsheet_would_carry_out(tmp_path):
    names = ["=1+1", "+cmd", "-x", "@sum", "mp-1", "-0.5"]
    rows = [
        replace(described(rocksalt().to(dtype=torch.float32), Composition.of([11, 17])))
        for _ in names
    ]
    rows = [replace(record, row=record.row | {"start": name}) for record, name in zip(rows, names)]
    written = [
        row["start"]
        for row in csv.DictReader(io.StringIO(csv_text(list(rows[0].row), [r.row for r in rows])))
    ]
    assert written == ["'=1+1", "'+cmd", "'-x", "'@sum", "mp-1", "-0.5"]


def test_the_table_is_no_table_of_structures(tmp_path):
    """Both packages take a column `cif` for the text of structures; ours names files."""
    run(tmp_path / "out", n=1)
    header = (tmp_path / "out/table.csv").read_text().splitlines()[0].split(",")
    assert "cif" not in header
    assert {"cif_file", "cif_symmetrised_file"} <= set(header)
    assert columns_explained("sample") == header


def test_a_run_that_ends_before_its_first_crystal_has_a_table_with_columns(tmp_path):
    requests = make_requests([OXYGEN], n=1, seed=0)
    plan, model = SamplingPlan(SamplerConfig(steps=2)), FakeModel()
    settings = run_settings(requests, plan, model, SampleOptions(n=1))
    with pytest.raises(KeyboardInterrupt), OutputFolder(tmp_path, settings, total=1):
        raise KeyboardInterrupt
    assert (tmp_path / "table.csv").read_text() == ",".join(COLUMNS) + "\n"
    with OutputFolder(tmp_path, settings, total=1) as folder:
        folder.commit(next(make(model, requests, plan)), symprec=0.1)
        folder.finish()
    assert len(list(csv.DictReader((tmp_path / "table.csv").open()))) == 1


FORKING = """
import os, sys
sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]
from pathlib import Path
from fake_model import FakeModel
from test_output import run
for _ in sys.stdin:  # every line starts one run; importing torch once is enough
    pid = os.fork()
    if pid == 0:
        run(Path(sys.argv[2]), FakeModel(step_s=0.002), n=20, keep_trajectory=True)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "out"
    run(path, n=20, keep_trajectory=True)
    return contents(path)


@pytest.mark.parametrize("seed", [1])
def test_a_run_killed_again_and_again_ends_in_the_same_bytes(tmp_path, uninterrupted, seed):
    """SIGKILL at random instants; what was finished before is there after."""
    when, kept, kills = random.Random(seed), 0, 0
    starter = subprocess.Popen(
        [sys.executable, "-c", FORKING, str(Path(__file__).parent), str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    with starter:
        for _ in range(10):
            print("start", file=starter.stdin, flush=True)
            child = int(starter.stdout.readline())
            wait_for_parts(tmp_path / "out", more=when.randrange(6))
            time.sleep(when.uniform(0.0, 0.02))
            os.kill(child, signal.SIGKILL)
            killed = int(starter.stdout.readline()) == signal.SIGKILL
            kills += killed
            now = finished_crystals(tmp_path / "out")
            assert now >= kept
            kept = now
            if not killed:
                break
        starter.stdin.close()
    assert kills >= 3
    assert kept > 0
    run(tmp_path / "out", n=20, keep_trajectory=True)
    assert contents(tmp_path / "out") == uninterrupted


def wait_for_parts(path, more):
    """Wait until that many more batches are finished, or the run is complete."""
    deadline = time.monotonic() + 300
    before = len(list(path.glob(".parts/*.json")))
    while 0 <= len(list(path.glob(".parts/*.json"))) - before < more:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def finished_crystals(path):
    if (path / "run.json").exists() and json.loads((path / "run.json").read_text())[
        "status"
    ] == "complete":
        return 60
    return sum(len(json.loads(part.read_text())) for part in path.glob(".parts/*.json"))
