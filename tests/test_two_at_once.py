"""Two commands started at once in one folder: the second is refused, the first ends unharmed."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROGRAM = """
import os, sys
sys.path[:0] = {path!r}
from kills import COMMANDS
from hostile_files import go
os.chdir({folder!r})
if sys.argv[1] == "make":
    COMMANDS[{name!r}].make()
else:
    raise SystemExit(go(*COMMANDS[{name!r}].words, *sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"), [("hull", []), ("train", []), ("train", ["training.epochs=6", "--resume"])]
)
def test_the_second_of_two_commands_in_one_folder_is_refused(tmp_path, name, more):
    path = [str(HERE), str(HERE / "hull"), str(HERE / "train")]
    program = PROGRAM.format(path=path, folder=str(tmp_path), name=name)

    def start(*words):
        command = [sys.executable, "-c", program, *words]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
        )

    assert start("make").wait() == 0
    if "--resume" in more:
        first = start("go")
        said, _ = first.communicate()
        assert first.returncode == 0, said
    record = tmp_path / "out/run.json"
    before = record.stat().st_mtime_ns if record.exists() else 0
    first = start("go", *more)
    while first.poll() is None and not (record.exists() and record.stat().st_mtime_ns > before):
        time.sleep(0.05)
    second = start("go", *more)
    refusal, _ = second.communicate()
    running = first.poll() is None
    said, _ = first.communicate()
    assert first.returncode == 0, said
    assert running, "the first ended before the second asked: nothing was tried"
    assert second.returncode == 1
    assert "is being written by another run: wait for it, or " in refusal
    assert "Traceback" not in refusal + said
    assert '"complete"' in record.read_text()
