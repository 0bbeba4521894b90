"""What the command line does before a command has its say."""

import os
import subprocess
import sys

import pytest

from crystorus import cli


@pytest.mark.parametrize(
    ("said", "spin"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_waiting_threads_do_not_spin_for_long_unless_the_user_says_so(monkeypatch, said, spin):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # to be put back afterwards
        monkeypatch.delenv(name)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    seen = []
    monkeypatch.setattr(cli, "app", lambda **_: seen.append(os.environ.get("GOMP_SPINCOUNT")))
    cli.main()
    assert seen == [spin]


def test_that_is_said_before_torch_is_loaded():
    code = "import sys, crystorus.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
