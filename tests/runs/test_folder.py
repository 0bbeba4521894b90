import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from crystal_fidelity.files import FileError
from crystorus.errors import OutputError
from crystorus.runs import folder as folder_module
from crystorus.runs.folder import COMPLETE, INTERRUPTED, RUN, claim, read_record

SETTINGS = {"seed": 0, "sampler": {"steps": 12, "cells": [1, 2]}}
NAMES = ("table.csv", ".parts")


def status(path):
    return read_record(path)["status"]


def make(path, **changes):
    """Make a finished run with one file."""
    with claim(path, "sample", SETTINGS | changes, names=NAMES) as run:
        (path / "table.csv").write_text("mine")
        run.finish()


def test_a_run_that_ends_early_is_interrupted_and_goes_on(tmp_path):
    with suppress(KeyboardInterrupt), claim(tmp_path, "sample", SETTINGS) as run:
        assert not run.resumed
        raise KeyboardInterrupt
    assert status(tmp_path) == INTERRUPTED
    with claim(tmp_path, "sample", SETTINGS) as run:
        assert run.resumed
        assert not run.complete
        assert status(tmp_path) == "running"
        run.finish()
    assert status(tmp_path) == COMPLETE
    with claim(tmp_path, "sample", SETTINGS) as run:
        assert run.complete
    assert status(tmp_path) == COMPLETE


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "its seed is 0, yours is 1"),
        ({"sampler": {"steps": 25, "cells": [1, 2]}}, "its sampler.steps is 12, yours is 25"),
        ({"more": True}, "its more is null, yours is true"),
    ],
)
def test_a_folder_of_other_settings_is_refused_and_left_alone(tmp_path, changes, words):
    make(tmp_path)
    before = (tmp_path / RUN).read_bytes()
    with pytest.raises(OutputError, match=f"holds another run: {words}.*--out.*--overwrite"):
        claim(tmp_path, "sample", SETTINGS | changes, names=NAMES)
    assert (tmp_path / RUN).read_bytes() == before
    claim(tmp_path, "sample", SETTINGS | changes, may_change={*changes, "sampler.steps"})


def test_a_run_of_another_kind_is_refused_even_to_be_overwritten(tmp_path):
    make(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"another kind \(sample, not train\)"):
            claim(tmp_path, "train", SETTINGS, overwrite=overwrite)


def test_overwrite_replaces_the_run_and_nothing_else(tmp_path):
    make(tmp_path)
    (tmp_path / "notes.txt").write_text("not of the run")
    with claim(tmp_path, "sample", SETTINGS | {"seed": 1}, names=NAMES, overwrite=True) as run:
        assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", RUN]
        assert not run.resumed
    (tmp_path / RUN).write_text("{ damaged")
    with pytest.raises(OutputError, match=r"not the record of a run.*--overwrite"):
        claim(tmp_path, "sample", SETTINGS)
    claim(tmp_path, "sample", SETTINGS, overwrite=True)


@pytest.mark.parametrize(
    "record",
    ["[" * 100_000, '{"settings": 1}', '{"settings": {}, "facts": 7}', "[]",
     '{"settings": {}, "versions": [1]}'],
)  # fmt: skip
def test_a_record_that_is_none_is_refused_with_what_the_command_can_do(tmp_path, record):
    (tmp_path / RUN).write_text(record)
    with pytest.raises(OutputError, match="not the record of a run") as refused:
        claim(tmp_path, "train", SETTINGS, remedy="choose another folder", replace="")
    assert str(refused.value).endswith(": choose another folder")


def test_a_command_without_out_and_overwrite_does_not_advise_them(tmp_path):
    make(tmp_path)
    with pytest.raises(OutputError, match=r"yours is 1: choose another folder$"):
        claim(tmp_path, "sample", SETTINGS | {"seed": 1}, remedy="choose another folder",
              replace="")  # fmt: skip
    with pytest.raises(OutputError, match="yours is 1: choose another --out, or --overwrite"):
        claim(tmp_path, "sample", SETTINGS | {"seed": 1})


def test_files_of_unknown_origin_are_refused(tmp_path):
    (tmp_path / "table.csv").write_text("precious")
    with pytest.raises(OutputError, match=r"already holds table\.csv of unknown origin"):
        claim(tmp_path, "sample", SETTINGS, names=NAMES)
    assert (tmp_path / "table.csv").read_text() == "precious"
    assert not (tmp_path / RUN).exists()


def test_going_on_can_be_forbidden_or_demanded(tmp_path):
    with pytest.raises(OutputError, match="no run to resume"):
        claim(tmp_path / "new", "train", SETTINGS, resume=True)
    assert not (tmp_path / "new").exists()
    claim(tmp_path / "new", "train", SETTINGS, resume=False).__exit__(None, None, None)
    with pytest.raises(OutputError, match="already holds a run: add --resume"):
        claim(tmp_path / "new", "train", SETTINGS, resume=False)
    claim(tmp_path / "new", "train", SETTINGS, resume=True)


def test_what_a_kill_left_half_written_is_gone_when_the_run_goes_on(tmp_path):
    make(tmp_path)
    places = [tmp_path / ".run.json.7-ab12cd.part", tmp_path / ".parts/.x.json.7-ab12cd.part"]
    places[1].parent.mkdir()
    for place in (*places, tmp_path / ".parts/x.json"):
        place.write_text("{")
    claim(tmp_path, "sample", SETTINGS, names=NAMES)
    assert [place.exists() for place in places] == [False, False]
    assert (tmp_path / ".parts/x.json").exists()


def test_two_runs_cannot_write_one_folder_at_once(tmp_path):
    with (
        claim(tmp_path, "sample", SETTINGS),
        pytest.raises(OutputError, match="by another run"),
    ):
        claim(tmp_path, "sample", SETTINGS)
    claim(tmp_path, "sample", SETTINGS)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(FileError, match=r"out.*choose another --out"):
        claim(tmp_path / "out", "sample", SETTINGS)


def test_a_full_disk_is_told_and_the_folder_is_not_stuck(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(FileError, match=r"no space left.*MiB free.*make room"):
            claim(tmp_path, "sample", SETTINGS)
    claim(tmp_path, "sample", SETTINGS)


KILLED = """
import os, signal, sys
from pathlib import Path
from crystorus.runs.folder import claim
real, left = os.fsync, [int(sys.argv[2])]
def fsync(descriptor):  # killed in place of the n-th sync, before the file has its name
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)
os.fsync = fsync
with claim(Path(sys.argv[1]), "sample", {"seed": 0}) as run:
    run.note(data="abc")
    run.finish()
"""


@pytest.mark.parametrize("syncs", range(6))
def test_a_kill_at_any_write_leaves_a_folder_that_goes_on(tmp_path, syncs):
    words = [sys.executable, "-c", KILLED, str(tmp_path / "out"), str(syncs)]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    with claim(tmp_path / "out", "sample", {"seed": 0}) as run:
        assert run.resumed == (syncs > 0)
        run.finish()
    assert [p.name for p in (tmp_path / "out").iterdir()] == [RUN]
    with pytest.raises(OutputError, match="holds another run"):
        claim(tmp_path / "out", "sample", {"seed": 1})


def test_versions_and_facts_of_the_beginning_are_kept(tmp_path):
    with claim(tmp_path, "train", SETTINGS, versions={"torch": "1", "ase": "3"}) as run:
        run.note(data={"train": "abc"})
    with claim(tmp_path, "train", SETTINGS, versions={"torch": "2"}) as run:
        assert run.facts == {"data": {"train": "abc"}}
        assert run.changed_versions({"torch": "2", "ase": "3"}) == {"torch": ("1", "2")}


def test_a_finished_run_can_be_opened_again(tmp_path):
    make(tmp_path)
    with claim(tmp_path, "sample", SETTINGS) as run:
        run.reopen()
        assert status(tmp_path) == "running"
    assert status(tmp_path) == INTERRUPTED


@pytest.mark.parametrize(
    ("name", "content", "kind", "complete"),
    [
        (RUN, {"status": "complete", "settings": {"seed": 0}, "versions": {}}, "sample", True),
        (RUN, {"config": {"seed": 0}, "data": {"train": "abc"}}, "train", False),
        ("judging.json", {"seed": 0}, "train-scorer", False),
    ],
)
def test_records_of_older_versions_are_understood(tmp_path, name, content, kind, complete):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(OutputError, match="its seed is 0, yours is 1"):
        claim(tmp_path, kind, {"seed": 1})
    with claim(tmp_path, kind, {"seed": 0}) as run:
        assert run.resumed
        assert run.complete == complete
        assert run.facts == ({"data": {"train": "abc"}} if kind == "train" else {})


def test_settings_of_older_versions_are_adapted_and_records_elsewhere_used(tmp_path):
    (tmp_path / "campaign.db").touch()
    found = {"settings": {"settle": 3}, "versions": {"ase": "3"}, "status": COMPLETE}
    how = {"names": ["campaign.db"], "recorded": found, "adapt": lambda old: {"final": 3}}
    run = claim(tmp_path, "campaign", {"final": 3}, **how)
    assert (run.resumed, run.complete, run.versions) == (True, True, {"ase": "3"})
    run.__exit__(None, None, None)


def test_a_system_without_locks_still_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "fcntl", None)
    with claim(tmp_path, "sample", SETTINGS) as run:
        run.finish()
