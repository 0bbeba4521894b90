"""Campaigns through the command line: what they write, how they go on, what they refuse."""

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from alloys import (
    EMT_PATH,
    crystorus,
    guided_fake,
    l10,
    l12,
    one_sentence,
    rows_of,
    table,
    write_alloys,
    write_library,
)
from ase import Atoms
from ase.build import bulk, fcc111

from crystal_fidelity import workers as worker_places
from crystorus import checkpoint
from crystorus.errors import OutputError
from crystorus.hull import campaign, schedule

HERE = Path(__file__).parent
PATHS = os.pathsep.join([str(HERE), *filter(None, sys.path)])
AGAIN = ("--potential", EMT_PATH, "--workers", "0")
ENERGY = (*AGAIN, "--relax-steps", "4")


def hull_words(folder, references, *more, **other):
    given = {"library": references.with_name("known.templates"), "start": "both"} | other
    named = [word for name, value in given.items() for word in (f"--{name}", value)]
    return ("hull", "Cu-Au", "--max-atoms", 4, "--n", 2, "--budget", 8, "--out", folder,
            "--formula", "CuAu", "--formula", "CuAu3", "--formula", "Cu3Au",
            "--references", references, *ENERGY, *named, *more)  # fmt: skip


@pytest.fixture(scope="module")
def made_once(tmp_path_factory, library):
    """One finished campaign; tests that change it take a copy."""
    folder = Path(shutil.copytree(library.parent, tmp_path_factory.mktemp("once") / "made"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "load_checkpoint", lambda path, device="cpu": guided_fake())
        references = write_alloys(folder / "alloys.extxyz")
        done = crystorus(*hull_words(folder / "run", references))
    assert done.exit_code == 0, done.output
    return folder / "run"


@pytest.fixture
def finished(made_once, tmp_path, fake_model):
    return Path(shutil.copytree(made_once, tmp_path / "run"))


def test_a_campaign_leaves_what_it_promises(finished):
    rows = table(finished)
    for name in ("campaign.db", "compositions.csv", "summary.json", "hull.svg", "hull.png",
                 "report.html"):  # fmt: skip
        assert (finished / name).stat().st_size > 0
    counts = json.loads((finished / "summary.json").read_text())
    assert counts["generated"] == 8
    originals = ase.db.connect(finished / "campaign.db")
    assert originals.count("kind=generated,stage=original") == 8
    assert originals.count("kind=reference,stage=relaxed,status=relaxed") == 3
    assert counts["valid"] == 8 - originals.count("kind=generated,status=invalid")
    ranked = [row for row in rows if row["energy_per_atom"]]
    heights = [float(row["e_above_hull"]) for row in ranked]
    assert heights == sorted(heights)
    assert rows[: len(ranked)] == ranked  # failures are last
    for row in ranked:
        assert (finished / row["file"]).is_file()
        assert ase.io.read(finished / row["file"]).get_chemical_formula(empirical=True)
        assert row["file"].split("/")[1] == row["formula"]


def test_every_record_keeps_where_its_walk_began(finished):
    """Half at the library's prototypes, half at noise; the relaxed L1_0 is still tetragonal."""
    database = ase.db.connect(finished / "campaign.db")
    begun = {
        (row.formula, row.data["sample"]): (
            row.start,
            row.get("prototype_fraction", 0) > 0,
            row.origin,
        )
        for row in database.select("kind=generated,stage=original")
    }
    assert begun["AuCu", 0] == ("L1_0-AgPd", True, "substituted")
    assert begun["Au3Cu", 0] == ("L1_2", True, "substituted")
    assert begun["AuCu3", 0] == ("L1_2", True, "known")
    assert {start for (_, sample), start in begun.items() if sample == 1} == {
        ("noise", False, "not in library")
    }
    assert [row.name for row in database.select("stage=relaxed,start=L1_0-AgPd")]
    for row in table(finished):
        (kept,) = database.select(stage="relaxed", name=row["name"])
        assert (row["start"], row["origin"]) == (kept.start, kept.origin)
        share = kept.get("prototype_fraction")
        assert row["prototype_fraction"] == ("" if kept.start == "noise" else f"{share:.3f}")
    groups = {row["start"]: row["space_group_number"] for row in table(finished)}
    assert groups["L1_0-AgPd"] == "123"
    assert json.loads((finished / "summary.json").read_text())["of them from templates"] == 4


def test_what_references_or_library_hold_is_not_found_again(finished, tmp_path, alloys):
    """Cu3Au comes out of the library itself, CuAu in the prototype of another alloy."""
    hidden = tmp_path / "hidden.extxyz"
    ase.io.write(hidden, [l10(), l12()], format="extxyz")
    fewer = write_alloys(tmp_path / "fewer.extxyz", without="L1_2")
    for references, sought, known in ((alloys, 1, 1), (fewer, 2, None)):
        done = crystorus("rank", finished, "--references", references, "--held-out", hidden,
                         *AGAIN, "--no-report")  # fmt: skip
        assert done.exit_code == 0, done.output
        counts = json.loads((finished / "summary.json").read_text())
        assert (counts["held-out phases"], counts.get("held out but known")) == (sought, known)
        assert counts["held-out phases found"] == 1
        assert {r["formula"] for r in table(finished) if r["held_out_id"]} == {"CuAu"}


def test_the_energies_of_the_table_are_those_of_the_calculator(finished):
    """A CIF of the table, computed anew."""
    from alloys import SlowEMT

    for row in [row for row in table(finished) if row["energy_per_atom"]][:5]:
        atoms = ase.io.read(finished / row["file"])
        atoms.calc = SlowEMT()
        energy = atoms.get_potential_energy() / len(atoms)
        assert energy == pytest.approx(float(row["energy_per_atom"]), abs=1e-4)


def test_the_database_opens_with_ase_and_can_be_sorted(finished):
    shown = subprocess.run(
        [sys.executable, "-m", "ase", "db", finished / "campaign.db", "stage=relaxed,rank<3",
         "-c", "name,rank,e_above_hull,novelty", "-s", "rank"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert table(finished)[0]["name"] in shown


def test_running_again_changes_nothing_and_relaxes_nothing(finished, alloys, monkeypatch):
    before, first = rows_of(finished / "campaign.db"), (finished / "table.csv").read_bytes()
    monkeypatch.setattr(schedule, "relax_together", lambda *_, **__: pytest.fail("relaxed again"))
    done = crystorus(*hull_words(finished, alloys, "--no-report"))
    assert done.exit_code == 0, done.output
    assert rows_of(finished / "campaign.db") == before
    assert (finished / "table.csv").read_bytes() == first


@pytest.mark.parametrize(
    "change",
    ["masses = 1.5", "forces = 'x'", "numbers = x'c8000000'", "positions = x'00'", "cell = NULL",
     "key_value_pairs = json_set(key_value_pairs, '$.kind', json('[]'))",
     "key_value_pairs = json_remove(key_value_pairs, '$.name')",
     "key_value_pairs = json_set(key_value_pairs, '$.energy_per_atom', 'x')"],
)  # fmt: skip
def test_rows_that_no_campaign_wrote_are_refused_in_one_sentence(
    finished, alloys, tmp_path, change
):
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    with contextlib.closing(sqlite3.connect(other / "campaign.db")) as plain:
        plain.execute(f"UPDATE systems SET {change} WHERE id = 2")
        plain.commit()
    one_sentence(crystorus("rank", other, "--references", alloys, *AGAIN), "cannot be read")


def test_without_out_the_folder_is_named_after_the_system(
    tmp_path, alloys, fake_model, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = hull_words(tmp_path / "x", alloys, "--no-report")
    place = words.index("--out")
    done = crystorus(*words[:place], *words[place + 2 :])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out/hull-Cu-Au/table.csv").is_file()


def test_the_order_of_relaxations_changes_no_row_and_no_table(
    finished, tmp_path, alloys, fake_model, monkeypatch
):
    order, record = [], campaign.Campaign.record

    def last_first(self):
        rows = [self._references] if self._references else list(self._candidates.values())
        rows = [row for one in rows for row in one]
        row = max(rows, key=lambda row: row.id, default=None)
        for one in (self._references, *self._candidates.values()):
            if row in one:
                one.remove(row)
        return row

    def noting(self, outcomes):
        order.extend(outcome.id for outcome in outcomes)
        record(self, outcomes)

    monkeypatch.setattr(campaign.Campaign, "record", noting)
    crystorus(*hull_words(tmp_path / "chosen", alloys, "--no-report"))
    chosen = order.copy()
    order.clear()
    monkeypatch.setattr(schedule.Queue, "pop", last_first)
    crystorus(*hull_words(tmp_path / "backwards", alloys, "--no-report"))
    assert sorted(order) == sorted(chosen)
    assert order != chosen
    for name in ("chosen", "backwards"):
        assert rows_of(tmp_path / name / "campaign.db") == rows_of(finished / "campaign.db")
        assert (tmp_path / name / "table.csv").read_bytes() == (finished / "table.csv").read_bytes()


@pytest.mark.parametrize("command", ["hull", "relax"])
def test_a_campaign_whose_time_is_up_ranks_what_it_has_and_goes_on(
    finished, tmp_path, alloys, fake_model, command
):
    """A thousandth of a second: known phases, one candidate, and the next command the next one."""
    short, folder = ("--minutes", "1e-5", "--no-report"), tmp_path / "short"
    for relaxed in (1, 2):
        done = crystorus(*hull_words(folder, alloys, *short))
        assert done.exit_code == 0, done.output
        counts = json.loads((folder / "summary.json").read_text())
        waiting = counts["unique before relaxation"] - relaxed
        assert counts["waiting"] == waiting
        assert [row["status"] for row in table(folder)][-waiting:] == ["waiting"] * waiting
        assert f"waiting: {waiting} structure" in done.stderr
        assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    ranked = crystorus("rank", folder, "--references", alloys, *AGAIN, "--no-report")
    assert ranked.exit_code == 0, ranked.output
    assert json.loads((folder / "summary.json").read_text())["waiting"] == waiting
    if command == "relax":
        done = crystorus("relax", folder, *AGAIN)
        assert done.exit_code == 0, done.output
    done = crystorus(*hull_words(folder, alloys, "--no-report"))
    assert done.exit_code == 0, done.output
    assert rows_of(folder / "campaign.db") == rows_of(finished / "campaign.db")
    for name in ("table.csv", "summary.json"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


class Killed(BaseException):
    """As good as a kill: nothing between here and the top may handle it."""


@pytest.mark.parametrize("point", [0, 2, 5])
def test_an_interruption_before_any_commit_ends_in_the_same_database(
    finished, tmp_path, alloys, fake_model, monkeypatch, point
):
    """Broken off at its n-th transaction, inside it, and begun again."""
    other, commits = tmp_path / "other", []
    for name in ("add", "set_aside", "record", "note"):
        original = getattr(campaign.Campaign, name)

        def breaking(self, *arguments, original=original):
            commits.append(original)
            if len(commits) == point + 1:
                with self._writing(), self._db:
                    original_write = type(self._db).write
                    original_write(self._db, l12(), name="half-written", kind="generated")
                    raise Killed
            return original(self, *arguments)

        monkeypatch.setattr(campaign.Campaign, name, breaking)
    with pytest.raises(Killed):
        crystorus(*hull_words(other, alloys, "--no-report"))
    done = crystorus(*hull_words(other, alloys, "--no-report"))
    assert done.exit_code == 0, done.output
    assert rows_of(other / "campaign.db") == rows_of(finished / "campaign.db")
    assert (other / "table.csv").read_bytes() == (finished / "table.csv").read_bytes()


def start(words, **environment):
    environment = os.environ | {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        [sys.executable, HERE / "alloys.py", *map(str, words)], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(tmp_path, alloys):
    words = ("hull", "Cu-Au", "--max-atoms", 6, "--n", 2, "--budget", 24, "--references", alloys,
             "--start", "both",
             "--library", alloys.with_name("known.templates"), "--potential", EMT_PATH,
             "--workers", "2", "--relax-steps", "15", "--no-report")  # fmt: skip
    slow = {"EMT_SLEEP_S": "0.05", "FAKE_STEP_S": "0.1"}
    began = time.monotonic()
    whole = start((*words, "--out", tmp_path / "whole"), **slow)
    assert whole.wait() == 0, whole.stdout.read()
    took, chance, kills = time.monotonic() - began, random.Random(0), 0
    while kills < 10:
        broken = start((*words, "--out", tmp_path / "broken"), **slow)
        try:
            broken.wait(timeout=chance.uniform(0.2, 0.7) * took)
        except subprocess.TimeoutExpired:
            broken.send_signal(signal.SIGKILL)
            broken.wait()
            kills += 1
            continue
        assert broken.returncode == 0, broken.stdout.read()
        shutil.rmtree(tmp_path / "broken")  # finished between kills: begin another
        took *= 0.8  # the machine has become faster
    last = start((*words, "--out", tmp_path / "broken"), **slow)
    assert last.wait() == 0, last.stdout.read()
    assert rows_of(tmp_path / "broken/campaign.db") == rows_of(tmp_path / "whole/campaign.db")
    for name in ("table.csv", "summary.json", "generated/crystals.extxyz"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_relax_and_rank_alone_give_what_one_command_gives(tmp_path, alloys):
    frames = [l10(), bulk("Cu", "bcc", a=2.9), l12()]
    ase.io.write(tmp_path / "mine.extxyz", frames, format="extxyz")
    mine = tmp_path / "mine.extxyz"
    relaxed = crystorus("relax", mine, "--out", tmp_path / "mine", *ENERGY)
    assert relaxed.exit_code == 0, relaxed.output
    assert "3 relaxed" in relaxed.output
    ranked = crystorus("rank", tmp_path / "mine", "--references", alloys, *AGAIN,
                       "--held-out", mine, "--no-report")  # fmt: skip
    assert ranked.exit_code == 0, ranked.output
    verdicts = {row["formula"]: (row["novelty"], row["known_id"], row["held_out_id"])
                for row in table(tmp_path / "mine")}  # fmt: skip
    assert verdicts["Cu3Au"] == ("rediscovered", "L1_2", "")
    assert verdicts["CuAu"] == ("not in the references", "", "mine-0")


def test_near_duplicates_are_relaxed_once_unless_asked_for(tmp_path):
    ase.io.write(tmp_path / "two.extxyz", [l12(), l12(), l12().repeat((2, 1, 1))], format="extxyz")
    once = crystorus("relax", tmp_path / "two.extxyz", "--out", tmp_path / "a", *ENERGY)
    all_of_them = crystorus(
        "relax", tmp_path / "two.extxyz", "--out", tmp_path / "b", "--keep-duplicates", *ENERGY
    )
    assert "1 relaxed" in once.output
    assert "3 relaxed" in all_of_them.output


def test_a_structure_that_kills_its_worker_is_recorded_and_ranked_last(tmp_path, alloys):
    frames = [l12(), bulk("Cu").repeat((3, 1, 1))]
    ase.io.write(tmp_path / "mine.extxyz", frames, format="extxyz")
    words = ("--potential", "alloys:DeadlyEMT", "--workers", "1")
    done = crystorus("relax", tmp_path / "mine.extxyz", "--out", tmp_path / "mine", *words)
    assert done.exit_code == 0, done.output
    assert "1 lost worker, 1 relaxed" in done.output
    done = crystorus("rank", tmp_path / "mine", "--references", alloys, "--no-report",
                     "--workers", 0, "--potential", "alloys:DeadlyEMT")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert table(tmp_path / "mine")[-1]["status"] == "lost worker"


@pytest.mark.parametrize(
    ("system", "more", "words"),
    [
        ("Cu-Xx", (), ["no element is called 'Xx'"]),
        ("Cu-Au-Cu", (), ["names Cu more than once"]),
        ("Cu", (), ["1 element: a hull takes 2 to 6"]),
        ("Cu-Au-Ag-Ni-Pd-Pt-Al-H", (), ["8 elements"]),
        ("Cu-Au", ("--max-atoms", 1), ["raise --max-atoms"]),
        ("Cu-Au", ("--max-atoms", 0), ["--max-atoms 0"]),
        ("Cu-Ni", (), ["no elemental phase of Ni", "--references"]),
        ("Cu-Au", ("--potential", "no_such:EMT"), ["no_such:EMT cannot be had"]),
        ("Cu-Au", ("--fmax", "0"), ["--fmax 0 eV/Å"]),
        ("Cu-Au", ("--budget", "0"), ["--budget 0"]),
        ("Cu-Au", ("--minutes", "0"), ["--minutes 0", "above 0"]),
        ("Cu-Au", ("--symprec", "0"), ["--symprec 0 Å", "above 0"]),
        ("Cu-Au", ("--symprec", "nan"), ["--symprec nan Å", "above 0"]),
        ("Cu-Au", ("--held-out", "none.csv"), ["none.csv does not exist"]),
        ("Cu-Au", ("--animate", "99999-CuAu"), ["holds no trajectory of it"]),
        ("Cu-Au", ("--library", "none.templates"), ["none.templates does not exist"]),
        ("Cu-Au", ("--library", HERE), ["is a folder"]),
        ("Cu-Au", ("--library", "x.templates", "--start", "noise"), ["--library says nothing"]),
    ],
)
def test_bad_input_ends_in_one_sentence(tmp_path, alloys, fake_model, system, more, words):
    given = {"--budget": 2, "--n": 1, "--references": alloys}
    given |= dict(zip(ENERGY[::2], ENERGY[1::2], strict=True)) | dict(
        zip(more[::2], more[1::2], strict=True)
    )
    named = [word for pair in given.items() for word in pair]
    done = crystorus("hull", system, "--out", tmp_path / "run", *named)
    one_sentence(done, *words)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--held-out", "none.csv"), "none.csv does not exist"),
        (("--symprec", "0"), "--symprec 0 Å"),
        (("--scheduler", "tcp://127.0.0.1:9"), "no Dask scheduler answers"),
    ],
)
def test_what_is_needed_late_is_looked_at_before_hours_of_work(
    tmp_path, alloys, fake_model, monkeypatch, option, words
):
    monkeypatch.setattr(worker_places, "_CONNECT_S", 1)
    done = crystorus("hull", "Cu-Au", "--budget", 2, "--n", 1, "--out", tmp_path / "run",
                     "--references", alloys, *ENERGY, *option)  # fmt: skip
    one_sentence(done, words)
    assert not (tmp_path / "run").exists()


def test_a_calculator_that_throws_on_everything_records_nothing(tmp_path, alloys, fake_model):
    """So that the same campaign goes on once it is mended."""
    folder = tmp_path / "run"
    done = crystorus("relax", alloys, "--out", folder, "--workers", 0,
                     "--potential", "alloys:ThrowingEMT")  # fmt: skip
    one_sentence(done, "failed on all of the first 3 structures", "the licence server is down")
    assert ase.db.connect(folder / "campaign.db").count("status=waiting") == 3


def test_another_campaign_is_refused_and_overwritten_only_when_asked(finished, alloys):
    before = rows_of(finished / "campaign.db")
    one_sentence(crystorus(*hull_words(finished, alloys, "--fmax", 0.01)),
                 "holds another run", "relaxation.fmax is 0.05, yours is 0.01")  # fmt: skip
    one_sentence(crystorus(*hull_words(finished, alloys, "--seed", 1)), "sampling", "--overwrite")
    write_library(alloys.with_name("other.templates"), of=[bulk("Cu"), l10()])
    other = crystorus(*hull_words(finished, alloys, library=alloys.with_name("other.templates")))
    one_sentence(other, "holds another run", 'yours is "other.templates')
    start = crystorus(*hull_words(finished, alloys, start="templates"))
    one_sentence(start, "holds another run", 'start is "both", yours is "templates"')
    assert rows_of(finished / "campaign.db") == before
    done = crystorus(*hull_words(finished, alloys, "--seed", 1, "--overwrite", "--no-report"))
    assert done.exit_code == 0, done.output
    assert rows_of(finished / "campaign.db") != before


def test_a_database_of_another_version_or_origin_is_refused(tmp_path, alloys):
    made = crystorus("relax", alloys, "--out", tmp_path / "a", *ENERGY)
    assert made.exit_code == 0, made.output
    database = ase.db.connect(tmp_path / "a/campaign.db")
    marked = database.metadata
    marked["crystorus"]["format"] = 99
    with database:
        database.metadata = marked
    again = crystorus("relax", alloys, "--out", tmp_path / "a", *ENERGY)
    one_sentence(again, "format 99", f"reads format {campaign.FORMAT}")
    (tmp_path / "b").mkdir()
    ase.db.connect(tmp_path / "b/campaign.db").write(bulk("Cu"))
    one_sentence(crystorus("relax", alloys, "--out", tmp_path / "b", *ENERGY), "not made by")
    assert ase.db.connect(tmp_path / "b/campaign.db").count() == 1
    (tmp_path / "c").mkdir()
    (tmp_path / "c/campaign.db").write_text("not a database at all, and long enough to be read")
    one_sentence(crystorus("relax", alloys, "--out", tmp_path / "c", *ENERGY), "no ASE database")


def test_a_full_disk_keeps_what_is_finished(tmp_path, alloys, monkeypatch):
    recorded = []
    record = campaign.Campaign.record

    def filling(self, outcomes):
        if recorded:
            with self._writing():
                raise sqlite3.OperationalError("database or disk is full")
        recorded.append(1)
        record(self, outcomes)

    monkeypatch.setattr(campaign.Campaign, "record", filling)
    full = crystorus("relax", alloys, "--out", tmp_path / "run", *ENERGY)
    one_sentence(full, "no space left", "finished work is kept")
    assert ase.db.connect(tmp_path / "run/campaign.db").count("status=relaxed") == 1
    monkeypatch.undo()
    done = crystorus("relax", alloys, "--out", tmp_path / "run", *ENERGY)
    assert "3 relaxed" in done.output


@pytest.mark.slow
def test_a_limit_on_file_size_is_a_full_disk(tmp_path, alloys):
    """The kernel refuses to let the database grow, as a full disk does."""
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (110_000, 110_000))\n"
        "import alloys; sys.exit(alloys.run(alloys.APP, sys.argv[1:]))\n"
    )
    frames = [bulk("Cu", a=3.4 + 0.01 * i).repeat((2, 2, 2)) for i in range(40)]
    ase.io.write(tmp_path / "many.extxyz", frames, format="extxyz")
    done = subprocess.run(
        [sys.executable, "-c", program, "relax", tmp_path / "many.extxyz", "--out",
         tmp_path / "run", "--keep-duplicates", *ENERGY],
        env=os.environ | {"PYTHONPATH": PATHS}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: no space left for" in done.stderr


def test_entries_and_relaxed_energies_meet_only_when_asked(tmp_path, alloys):
    entries = [{"@class": "ComputedEntry", "energy": e, "composition": c, "entry_id": n}
               for n, c, e in (("cu", {"Cu": 1}, 0.0), ("au", {"Au": 1}, 0.0))]  # fmt: skip
    (tmp_path / "e.json").write_text(json.dumps(entries))
    crystorus("relax", alloys, "--out", tmp_path / "run", *ENERGY)
    words = ("rank", tmp_path / "run", "--references", tmp_path / "e.json", "--no-report")
    one_sentence(crystorus(*words), "energies of 2 levels", "--mix-energy-levels")
    mixed = crystorus(*words, "--mix-energy-levels")
    assert mixed.exit_code == 0, mixed.output
    assert {row["novelty"] for row in table(tmp_path / "run")} == {
        "known composition", "not in the references"
    }  # fmt: skip


def test_ranking_nothing_is_refused(tmp_path, alloys):
    one_sentence(crystorus("rank", tmp_path, "--references", alloys), "holds no campaign")
    one_sentence(crystorus("rank", tmp_path / "none", "--references", alloys), "is no folder")
    one_sentence(crystorus("relax", tmp_path / "none.csv", "--out", tmp_path), "does not exist")
    one_sentence(crystorus("relax", alloys), "--out is missing")


def test_a_campaign_of_which_nothing_comes_through_says_so(tmp_path, alloys):
    squeezed = l12()
    squeezed.set_cell(squeezed.cell * 0.3, scale_atoms=True)
    (tmp_path / "bad").mkdir()
    squeezed.write(tmp_path / "bad" / "a.cif")
    done = crystorus("relax", tmp_path / "bad", "--out", tmp_path / "run", *ENERGY)
    one_sentence(done, "no structure of", "is fit to be relaxed")
    ranked = crystorus("rank", tmp_path / "run", "--system", "Cu-Au", "--references", alloys, *AGAIN)  # fmt: skip  # noqa: E501
    one_sentence(ranked, "none of 1 candidates came through (invalid)")


def test_two_writers_are_refused(tmp_path, alloys):
    crystorus("relax", alloys, "--out", tmp_path / "run", *ENERGY)
    with campaign.Campaign.reopen(tmp_path / "run"):
        second = crystorus("relax", alloys, "--out", tmp_path / "run", *ENERGY)
    one_sentence(second, "is being written by another run")


@pytest.mark.parametrize("settings", [1e308, []])
def test_a_database_that_lost_its_settings_is_refused(tmp_path, alloys, settings):
    crystorus("relax", alloys, "--out", tmp_path / "run", *ENERGY)
    base = ase.db.connect(tmp_path / "run/campaign.db", use_lock_file=False)
    base.metadata = {"crystorus": base.metadata["crystorus"] | {"settings": settings}}
    one_sentence(crystorus("relax", tmp_path / "run", *AGAIN), "does not hold its settings")


def test_references_can_be_changed_without_relaxing_candidates_again(finished, tmp_path, alloys):
    fewer = write_alloys(tmp_path / "fewer.extxyz", without="L1_2")
    before = {row["name"]: row["energy_per_atom"] for row in table(finished)}
    done = crystorus("rank", finished, "--references", fewer, *AGAIN, "--no-report")
    assert done.exit_code == 0, done.output
    after = {row["name"]: row["energy_per_atom"] for row in table(finished)}
    assert after == before
    relaxed = ase.db.connect(finished / "campaign.db").count("kind=reference,stage=relaxed")
    assert relaxed == 5


def test_a_campaign_of_an_earlier_version_goes_on(finished, alloys):
    """Format 2 had other words, described its samples otherwise and kept no run.json."""
    before = (finished / "table.csv").read_text()
    database = ase.db.connect(finished / "campaign.db")
    marked = database.metadata
    sampling = marked["crystorus"]["settings"]["sampling"]
    kept = ("start", "library", "seed", "crystals", "checkpoint_sha256")
    marked["crystorus"]["settings"]["sampling"] = {k: sampling[k] for k in kept} | {
        "requests_sha256": "0" * 64,
        "sampler": {"steps": 3},
    }
    with database:
        for row in list(database.select("prototype_fraction>=0")):
            old = {"share_of_votes": row.prototype_fraction}
            database.update(row.id, delete_keys=["prototype_fraction"], **old)
        database.metadata = marked
    (finished / "run.json").unlink()
    (finished / "table.csv").unlink()
    done = crystorus(*hull_words(finished, alloys, "--no-report"))
    assert done.exit_code == 0, done.output
    assert (finished / "table.csv").read_text() == before
    (finished / "run.json").unlink()
    one_sentence(crystorus(*hull_words(finished, alloys, "--seed", 1)), "sampling.seed is 0")


def test_another_layout_of_the_table_of_samples_refuses_no_campaign(tmp_path):
    for layout, seed in ((1, 0), (2, 0)):
        settings = {"sampling": {"layout": layout, "seed": seed}}
        with campaign.Campaign(tmp_path, settings, {}) as opened:
            assert opened.settings == settings
    with pytest.raises(OutputError, match=r"sampling\.seed is 0"):
        campaign.Campaign(tmp_path, {"sampling": {"layout": 2, "seed": 1}}, {})


@pytest.mark.parametrize("statements", [0, 1, 3, 6, 8])
def test_a_kill_while_the_tables_are_made_is_no_end(tmp_path, alloys, statements):
    """ASE makes its tables one by one."""
    from ase.db.sqlite import init_statements

    (tmp_path / "run").mkdir()
    with contextlib.closing(sqlite3.connect(tmp_path / "run/campaign.db")) as begun, begun:
        for statement in init_statements[:statements]:
            begun.execute(statement)
    done = crystorus("relax", alloys, "--out", tmp_path / "run", *ENERGY)
    assert done.exit_code == 0, done.output
    assert "3 relaxed" in done.output


def test_a_folder_of_somebody_else_neither_runs_programs_nor_writes_beside_it(finished, tmp_path):
    database = ase.db.connect(finished / "campaign.db")
    (first, *_) = database.select("stage=relaxed,kind=generated,energy_per_atom<9")
    with database:
        database.update(first.id, name="../../../escaped")
    others = write_alloys(tmp_path / "others.extxyz", without="L1_2")
    refused = crystorus("rank", finished, "--references", others, "--workers", 0)
    one_sentence(refused, "names the potential alloys:SlowEMT", "add --potential alloys:SlowEMT")
    with database:
        database.update(next(database.select("kind=reference,stage=relaxed")).id, status="waiting")
    one_sentence(crystorus("relax", finished, "--workers", 0), "names the potential")
    one_sentence(crystorus("relax", finished, "--potential", "alloys:NanEMT"), "names the pot")
    before = set(tmp_path.rglob("*escaped*"))
    assert not before
    done = crystorus("rank", finished, "--references", others, *AGAIN)
    assert done.exit_code == 0, done.output
    (cif, symmetrised) = sorted(tmp_path.parent.rglob("*escaped*"))
    assert finished in cif.parents
    assert finished in symmetrised.parents


def test_wrong_options_are_answered_without_anything_heavy(tmp_path):
    program = """
import sys
from crystorus.hull import command, options
checks = [
    lambda: options.RelaxSettings(fmax=-1),
    lambda: options.RelaxSettings(potential="emt"),
    lambda: options.SamplingOptions(budget=0),
    lambda: options.RankOptions(held_out=("none.csv",)),
    lambda: options.RankOptions(symprec=0.0),
    lambda: options.WorkerOptions(workers=-1),
    lambda: options.CompositionOptions(max_atoms=0),
    lambda: command.hull("Cu-Xx", options=options.HullOptions()),
    lambda: command.hull("Cu-Au", options=options.HullOptions()),
    lambda: command.hull("Cu", options=options.HullOptions()),
]
for check in checks:
    try:
        check()
    except Exception as error:
        assert "Error" in type(error).__name__ and type(error).__module__.startswith("cryst"), error
    else:
        raise SystemExit("accepted")
print([m for m in ("torch", "pymatgen", "matplotlib", "distributed") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True,
                          text=True, check=True, env=os.environ | {"PYTHONPATH": PATHS})  # fmt: skip  # noqa: E501
    assert done.stdout.strip() == "[]"


CASES = HERE.parents[2] / "shared/cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"needs {CASES}")


def test_a_decorated_reference_is_a_known_composition(tmp_path):
    copper_oxide = Atoms("Cu3O2", [[0, 0, 0], [1.85, 1.85, 0], [1.85, 0, 1.85], [0, 1.85, 1.85],
                                   [1.85, 1.85, 1.85]], cell=3.7 * np.eye(3), pbc=True)  # fmt: skip
    copper_oxide.write(tmp_path / "c.extxyz")
    crystorus("relax", tmp_path / "c.extxyz", "--out", tmp_path / "run", *ENERGY)
    found = []
    for oxide in ({"Cu": 3, "O": 2}, {"Cu+": 2, "Cu2+": 1, "O2-": 2}):
        phases = (("cu", {"Cu": 1}, 0.0), ("o2", {"O": 2}, 9.0), ("cu3o2", oxide, 3.0))
        entries = [{"@class": "ComputedEntry", "energy": e, "composition": c, "entry_id": n}
                   for n, c, e in phases]  # fmt: skip
        (tmp_path / "refs.json").write_text(json.dumps(entries))
        done = crystorus("rank", tmp_path / "run", "--system", "Cu-O", "--mix-energy-levels",
                         "--references", tmp_path / "refs.json", "--no-report")  # fmt: skip
        assert done.exit_code == 0, done.output
        found.append([(r["novelty"], r["e_above_hull"]) for r in table(tmp_path / "run")])
    assert found[0] == found[1]
    assert found[0][0][0] == "known composition"


@needs_cases
def test_the_recorded_references_that_share_ids(tmp_path):
    folder = CASES / "11-same-ids-two-references"
    crystorus("relax", folder / "candidate.extxyz", "--out", tmp_path / "run", *AGAIN)
    for names, known in (
        (["both.csv"], "row-1"),
        (["first.csv", "second.csv"], "row-1 (first.csv)"),
    ):
        sources = [word for name in names for word in ("--references", folder / name)]
        done = crystorus("rank", tmp_path / "run", *sources, *AGAIN, "--no-report")
        assert done.exit_code == 0, done.output
        (row,) = table(tmp_path / "run")
        assert (row["novelty"], row["known_id"]) == ("rediscovered", known)
        assert float(row["e_above_hull"]) == pytest.approx(0.0, abs=1e-3)


@needs_cases
def test_the_recorded_structures_that_blow_up(tmp_path):
    done = crystorus("relax", CASES / "21-relax-blow-ups/r.extxyz", "--out", tmp_path, *AGAIN)
    assert done.exit_code == 0, done.output
    failed = 0
    for row in ase.db.connect(tmp_path / "campaign.db").select():
        if row.status not in ("valid", "relaxed", "unconverged", "duplicate"):
            failed += 1
            assert row.reason
            assert "energy_per_atom" not in row
            assert row.get("energy") is None
    assert failed >= 3


def test_structures_that_blow_up_are_outcomes(tmp_path):
    """Alone in its cell, beside vacuum, far too close, unknown to the potential, and a good one."""
    slab = fcc111("Cu", (1, 1, 2), vacuum=20.0, periodic=True)
    close = Atoms("Cu2", [[0, 0, 0], [0.6, 0, 0]], cell=4 * np.eye(3), pbc=True)
    frames = [Atoms("Cu", cell=20 * np.eye(3), pbc=True), slab, close, bulk("Fe"), bulk("Cu")]
    ase.io.write(tmp_path / "r.extxyz", frames, format="extxyz")
    done = crystorus("relax", tmp_path / "r.extxyz", "--out", tmp_path / "run", *AGAIN)
    assert done.exit_code == 0, done.output
    database = ase.db.connect(tmp_path / "run/campaign.db")
    fates = {row.name: (row.status, bool(row.get("reason"))) for row in database.select()}
    assert [fates[f"r-{i}"] for i in (0, 2, 3)] == [
        ("invalid", True), ("exploded", True), ("failed", True)
    ]  # fmt: skip
    assert fates["r-4"] == ("relaxed", False)
