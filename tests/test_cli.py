"""What the command line does before a command has its say."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from crystorus import cli
from crystorus.terminal import lasting_interrupt


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


def test_an_interrupt_that_a_library_swallows_comes_again():
    with lasting_interrupt() as check:
        check()
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_interrupt_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with lasting_interrupt() as check:
            signal.raise_signal(signal.SIGINT)
            check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
