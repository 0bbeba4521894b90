"""What the command line does before a command has its say."""

import os
import subprocess
import sys

import pytest

from crystorus import cli


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(monkeypatch, before, after):
    seen = []
    if before is None:
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    else:
        monkeypatch.setenv("OMP_WAIT_POLICY", before)
    monkeypatch.setattr(cli, "app", lambda **_: seen.append(os.environ["OMP_WAIT_POLICY"]))
    cli.main()
    monkeypatch.undo()
    assert seen == [after]


def test_that_is_said_before_torch_is_loaded():
    code = "import sys, crystorus.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
