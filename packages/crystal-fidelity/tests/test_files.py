import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
from unittest import mock

import numpy as np
import pytest

from crystal_fidelity.features import FeatureSet, Identity, save_features
from crystal_fidelity.files import (
    FileError,
    atomic_path,
    check_writable,
    disk_errors,
    file_digest,
    remove_asides,
    write_atomic,
)
from crystal_fidelity.report import write_json, write_plots


def test_a_writer_killed_half_way_leaves_what_was_there(tmp_path):
    target = tmp_path / "out.json"
    target.write_text("old")
    program = (
        "import os, signal, sys\n"
        "from crystal_fidelity.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as file:\n"
        "    file.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old"


class Broken:
    def __str__(self):
        raise RuntimeError("half-way")


def test_an_error_half_way_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_arguments, **_arrays):
        raise RuntimeError("half-way")

    identity = Identity("net", "0" * 64, "none")
    with pytest.raises(RuntimeError, match="half-way"):
        write_json(tmp_path / "a.json", {"fine": 1, "broken": Broken()})
    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(RuntimeError, match="half-way"):
        save_features(tmp_path / "a.npz", FeatureSet(np.ones((2, 2)), ("a", "b"), identity))
    with contextlib.suppress(RuntimeError), atomic_path(tmp_path / "a") as file:
        file.write_text("half")
        fail()
    assert list(tmp_path.iterdir()) == []


def test_files_are_replaced_through_links_and_keep_usual_rights(tmp_path):
    (tmp_path / "real.html").write_text("old")
    (tmp_path / "link.html").symlink_to("real.html")
    write_plots(tmp_path / "link.html", "new", [])
    assert (tmp_path / "link.html").is_symlink()
    assert "new" in (tmp_path / "real.html").read_text()
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "real.html").stat().st_mode & 0o777 == 0o666 & ~mask


def test_pipes_are_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        write_json(pipe, {"a": 1})
        assert '"a": 1' in reader.communicate(timeout=10)[0]
    assert not pipe.is_file()


def test_text_and_bytes_are_written_as_they_are(tmp_path):
    write_atomic(tmp_path / "a", "Å\r\n")
    assert (tmp_path / "a").read_bytes() == "Å\r\n".encode()
    write_atomic(tmp_path / "a", b"abc")
    assert file_digest(tmp_path / "a").startswith("ba7816bf")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_two_writers_never_share_the_file_aside(tmp_path):
    with atomic_path(tmp_path / "a") as first, atomic_path(tmp_path / "a") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"
    (tmp_path / ".a.1-abc.part").write_text("of a writer that was killed")
    remove_asides(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(FileError, match=r"no space left for .*a \(.* MiB free\): make room"),
        disk_errors(tmp_path / "a"),
    ):
        write_atomic(tmp_path / "a", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    with (
        pytest.raises(FileError, match=r"cannot write .*missing.*No such file.*choose another"),
        disk_errors(tmp_path / "missing"),
    ):
        write_atomic(tmp_path / "missing" / "a", "new")


def test_a_file_takes_the_place_of_a_link_to_itself(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    write_atomic(tmp_path / "loop", "text")
    assert (tmp_path / "loop").read_text() == "text"


def test_a_folder_that_cannot_be_written_is_refused_beforehand(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "deeper")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FileError, match=f"cannot write {path}: Not a directory; rename it"):
            check_writable(path, remedy="rename it")
    (tmp_path / "link").symlink_to("missing")
    with pytest.raises(FileError, match="below: No such file or directory"):
        check_writable(tmp_path / "link" / "below")
    with pytest.raises(FileError, match="File name too long"):
        check_writable(tmp_path / ("x" * 300))
    refusal = PermissionError(errno.EACCES, "Permission denied", "/tmp/tmp1a2b")
    monkeypatch.setattr(tempfile, "TemporaryFile", mock.Mock(side_effect=refusal))
    with pytest.raises(FileError, match=f"cannot write {tmp_path}: Permission denied"):
        check_writable(tmp_path)
