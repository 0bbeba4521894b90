"""The process that scores: one for many commands, replaced when it dies, ended when done."""

import os
import signal

import pytest
from ase import Atoms
from ase.io import write

from crystorus.reproduction import fidelity
from crystorus.reproduction.errors import PaperError


@pytest.fixture
def words(tmp_path):
    rocksalt = Atoms("NaCl", cell=[[0, 2.8, 2.8], [2.8, 0, 2.8], [2.8, 2.8, 0]], pbc=True,
                     scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]])  # fmt: skip
    path = tmp_path / "rocksalt.extxyz"
    write(path, [rocksalt] * 3, format="extxyz")
    yield ["validity", path, "--workers", "1"]
    fidelity.stop()


def test_one_process_runs_all_commands_from_any_folder(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = [words[0], words[1].relative_to(tmp_path), *words[2:]]
    first = fidelity.run_for_json(relative, tmp_path / "a.json")
    process = fidelity._server()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert fidelity.run_for_json(words, tmp_path / "b.json") == first
    assert fidelity._server() is process
    fidelity.stop()
    assert process.poll() is not None
    fidelity.stop()  # there is nothing left to end


def test_a_command_that_fails_says_why_and_the_next_one_works(words, tmp_path):
    with pytest.raises(PaperError, match=r"crystal-fidelity validity failed \(.*none\.extxyz"):
        fidelity.run(["validity", tmp_path / "none.extxyz"])
    assert fidelity.run_for_json(words, tmp_path / "a.json")["scores"]


def test_a_killed_process_is_told_and_replaced(words, tmp_path):
    fidelity.run(words)
    os.kill(fidelity._server().pid, signal.SIGKILL)
    with pytest.raises(PaperError, match=r"validity failed \(exit status -9\)"):
        fidelity.run(words)
    assert fidelity.run_for_json(words, tmp_path / "a.json")["scores"]
