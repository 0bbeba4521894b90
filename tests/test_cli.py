"""What the command line does before and around a command."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
from ase.build import bulk
from commandline import CliRunner

from crystal_fidelity import commandline
from crystorus import cli, terminal

COMMANDS = (
    "sample", "refine", "train", "train-scorer", "info", "predict", "hull", "relax", "rank",
    "view", "export", "help", "paper", "data get", "data build", "templates build",
)  # fmt: skip


def crystorus(*words, **settings):
    return CliRunner().invoke(None, words, **settings)


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
    crystorus("--version")
    assert os.environ.get("GOMP_SPINCOUNT") == spin
    assert logging.getLogger("moyo").level == logging.ERROR


HEAVY = ("torch", "scipy", "pymatgen", "ase", "numpy")


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["sampel"], ["info", "--nonsense"], ["data", "--help"]]
)
def test_nothing_heavy_is_imported_for(words):
    code = (
        "import sys\nfrom crystorus.cli import main\ntry:\n    main(sys.argv[1:])\n"
        f"finally:\n    print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_help_names_every_command_and_answers_h_too():
    found = crystorus("--help")
    assert found.exit_code == 0
    assert crystorus("-h").stdout == crystorus().stdout == found.stdout
    for command in COMMANDS:
        assert command.split()[0] in found.stdout
        shown = crystorus(*command.split(), "--help")
        assert (shown.exit_code, shown.stderr) == (0, "")
        assert f"crystorus {command}" in shown.stdout


def test_help_is_a_command_too():
    assert crystorus("help").stdout == crystorus("--help").stdout
    assert crystorus("help", "data", "get").stdout == crystorus("data", "get", "--help").stdout
    wrong = crystorus("help", "sampel")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert 'Did you mean "sample"' in wrong.stderr


def test_the_tab_key_completes_commands_and_options():
    script = cli.app.generate_completion(shell="bash")
    assert all(word in script for word in ("predict", "--formula", "--library", "train-scorer"))


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "crystorus", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == crystorus("--version").stdout


def test_the_version_is_told_with_torchs_and_that_of_the_weights():
    found = crystorus("--version")
    assert re.fullmatch(
        r"crystorus \S+, weights mp20 [0-9a-f]{12}\n"
        r"Python 3\.\d+\.\d+, torch 2\.\S+, device (cpu|cuda|mps)\n",
        found.stdout,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sampel"], 'Unknown command "sampel". Did you mean "sample"?'),
        (["data", "gte"], 'Unknown command "gte". Did you mean "get"?'),
        (["info", "--nonsense", "1"], "Unknown option: --nonsense"),
        (["info", "a", "b"], "b"),
    ],
)
def test_a_command_that_is_not_understood_is_one_line_and_status_2(words, message):
    found = crystorus(*words)
    assert (found.exit_code, found.stdout) == (2, "")
    assert message in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert "--help" in found.stderr


def test_an_error_is_one_line_and_status_1_and_a_traceback_with_debug(tmp_path):
    folder = tmp_path / "[/bold]"  # what would be markup does no harm
    found = crystorus("info", folder)
    assert (found.exit_code, found.exception) == (1, None)
    assert found.stderr.startswith(f"error: {folder} holds no")
    assert len(found.stderr.splitlines()) == 1
    assert type(crystorus("--debug", "info", folder).exception).__name__ == "CheckpointError"


def command_that(monkeypatch, body):
    """Replace `info` by something else."""
    monkeypatch.setattr("crystorus.checkpoint.read_card", body)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "stopped: interrupted"),
        (commandline.Terminated(), 143, "stopped: interrupted"),
        (FileNotFoundError(2, "No such file", "a[/b]"), 1, "error: a[/b]: No such file; check"),
        (OSError(28, "No space left", "a"), 1, "error: a: No space left; make room"),
        (RuntimeError("odd"), 1, "error: unexpected RuntimeError: odd. Run it as `crystorus --deb"),
    ],
)
def test_what_ends_a_command_gives_its_status_and_one_line(monkeypatch, error, code, message):
    def end(_folder):
        raise error

    command_that(monkeypatch, end)
    found = crystorus("info")
    assert found.exit_code == code
    assert found.stderr.startswith(message)
    assert len(found.stderr.splitlines()) == 1


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_with_its_status_and_how_to_go_on(tmp_path, kind, code):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\nfrom crystorus import cli\n\n\n"
        "def wait():\n    print('ready', flush=True)\n    time.sleep(60)\n\n\n"
        "cli.app.command(wait, name='hull2')\ncli.AFTER_INTERRUPT['hull2'] = 'it goes on'\n"
        "cli.main(['hull2'])\n"
    )
    child = subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.1)
    child.send_signal(kind)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (code, "stopped: it goes on\n")


def test_old_names_are_understood_with_a_hint(monkeypatch):
    monkeypatch.setitem(cli.RENAMED, ("sample", "--number"), "--n")
    found = crystorus("sample", "LiFeO2", "--number=0")
    assert "warning: --number is now --n" in found.stderr
    assert "error: 0 crystals each were asked for" in found.stderr
    assert "warning: judge is now train-scorer" in crystorus("judge", "--help").stderr
    assert "is now" not in crystorus("sample", "--", "--number=0").stderr
    for (command, old), new in cli.RENAMED.items():
        shown = crystorus(*command.split(), "--help").stdout
        assert new.split("=")[0] in shown, (command, old)


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "NaCl"], ["refine", "x.cif"], ["predict", "NaCl"],
        ["hull", "Na-Cl", "--references", "x.cif"], ["relax", "x.cif"], ["order", "x.cif"],
        ["train-scorer", "x.cif"], ["export", "x.cif"], ["view", "x.cif"],
        ["data", "build", "x.cif"], ["templates", "build", "x.cif"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, words):
    """Neither a checkpoint is loaded nor a reference read."""
    monkeypatch.chdir(tmp_path)
    bulk("NaCl", "rocksalt", a=5.64).write("x.cif")
    Path("file").write_text("mine")
    work = mock.Mock(side_effect=AssertionError("the work began"))
    for name in (
        "crystorus.checkpoint.load_checkpoint", "crystorus.train.scorer.loaded_checkpoint",
        "crystorus.hull.stages.load_references", "crystorus.hull.stages.open_workers",
        "crystorus.data.store.build_store", "crystorus.templates.library.build_library",
        "crystorus.data.ordering.order_sites", "crystorus.results.page.results_page_of",
        "crystorus.results.reading.read_results",
    ):  # fmt: skip
        monkeypatch.setattr(name, work)
    place = ["file/x.store"] if words[-2] == "build" else ["--out", "file/below"]
    done = crystorus(*words, *place)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "error: cannot write file" in done.stderr
    assert "Not a directory; choose another" in done.stderr
    assert Path("file").read_text() == "mine"


def test_the_paper_is_not_installed_and_where_it_is_is_told():
    found = crystorus("paper", "table2", "--budget", "cpu")
    assert found.exit_code == 1
    assert "`python -m reproduction table2 --budget cpu`" in found.stderr


def test_a_card_has_a_line_for_each_part_of_a_list():
    shown = crystorus("info").stdout
    assert "{" not in shown
    (heading,) = (n for n, line in enumerate(shown.splitlines()) if line.split() == ["reliability"])
    bins = [line.split() for line in shown.splitlines()[heading + 1 : heading + 6]]
    assert [words[:2] for words in bins] == [["from", x] for x in ("0", "0.2", "0.4", "0.6", "0.8")]
    assert all(words[2::2] == ["n", "confidence", "match_percent"] for words in bins)


@pytest.mark.parametrize("value", [[{}], [{"a": 1}, 2], [], {}])
def test_a_card_with_lists_of_any_kind_is_shown(capsys, value):
    terminal.show_card("card", {"theirs": value})
    assert "theirs" in capsys.readouterr().out


def test_output_that_is_cut_off_ends_quietly():
    done = subprocess.run(
        f"{sys.executable} -m crystorus info | head -1", shell=True, capture_output=True, text=True
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("The shipped checkpoint\n", "")


def test_progress_is_silent_where_there_is_no_terminal(capsys):
    with terminal.progress("reading", "structures", total=3) as update:
        update(1)
        update(2, 3, name="file")
    assert capsys.readouterr() == ("", "")


def test_progress_shows_rates_bytes_and_names_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    for unit in ("structures", "B"):
        with terminal.progress("work", unit) as update:
            update(1, 2, name="[/x]" if unit == "B" else "")
    err = capsys.readouterr().err
    assert "work" in err
    assert "[/x]" in err


def test_python_can_run_the_package():
    done = subprocess.run(
        [sys.executable, "-m", "crystorus", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("crystorus ")
    assert Path(cli.__file__).with_name("__main__.py").exists()


WRONG = [
    ("sample LiFeOx", "'LiFeOx', character 5: no element is called 'Ox'"),
    ("sample LiFeO2 --n 0", "0 crystals each were asked for"),
    ("sample LiFeO2 --candidates 2x", "Invalid value for --candidates"),
    ("sample LiFeO2 --nonsense", "Unknown option: --nonsense"),
    ("refine x.cif --level 2", "--level is 2"),
    ("hull Li-O --nonsense", "Unknown option: --nonsense"),
    ("hull Li-O --budget 0", "--budget 0: give"),
    ("relax x --fmax -1", "--fmax -1 eV/Å: give"),
    ("rank x --symprec 0", "--symprec 0 Å: give"),
    ("train-scorer x --candidates 1", "--candidates is 1: give 2 to 100"),
    ("data get mp-20 --split all", 'Invalid value "all" for --split. Choose from: "train"'),
    ("data build a b --workers x", "Invalid value for --workers"),
]


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_a_wrong_value_is_answered_before_torch_is_loaded(line, message):
    code = (
        "import sys\nfrom crystorus.cli import main\ntry:\n    main(sys.argv[1:])\n"
        "finally:\n    print('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, *line.split()]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stderr.startswith("error: " + message)
    assert done.stdout == "False\n"
