import csv
import functools
import gzip
import hashlib
import http.server
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import ase.io
import pytest
from ase import Atoms
from ase.build import bulk
from commandline import CliRunner
from fake_model import FakeModel

from crystorus import checkpoint, cli
from crystorus.checkpoint import load_checkpoint
from crystorus.config import SamplerConfig
from crystorus.sample import command
from crystorus.sample.api import generate
from crystorus.sample.choosing import FINAL_REFINEMENT_STEPS
from crystorus.sample.sampler import FAST

SITES = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0, 0.3), (0, 0.5, 0.7)]
FAKE = Path(__file__).parent / "fake_model.py"


@pytest.fixture
def crystorus(monkeypatch):
    """The command line with the fake model in it; returns (exit code, stdout, stderr)."""
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda path, device="cpu": FakeModel())

    def call(*arguments):
        result = CliRunner().invoke(cli.app, [str(a) for a in arguments], prog_name="crystorus")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return call


def refused(crystorus, words, *arguments, code=1):
    """One sentence on stderr, nothing on stdout, a non-zero exit, no traceback."""
    exit_code, stdout, stderr = crystorus(*arguments)
    assert exit_code == code
    assert stdout == ""
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in stderr
    for word in words:
        assert word in errors[0]


def rows_of(path):
    return list(csv.DictReader((path / "table.csv").open()))


def test_the_example_of_the_help_makes_its_crystals(crystorus, tmp_path):
    code, stdout, stderr = crystorus(
        "sample", "LiFeO2", "SrTiO3", "--z", "1,2,4", "--n", 8, "--seed", 0, "--out", tmp_path
    )
    assert code == 0
    assert "plan: 48 crystals of 6 compositions" in stderr
    assert stdout.startswith("48 crystals, ")
    rows = rows_of(tmp_path)
    assert [int(row["index"]) for row in rows] == list(range(48))
    assert [(row["formula"], row["formula_units"]) for row in rows[::8]] == [
        ("LiFeO2", "1"), ("LiFeO2", "2"), ("LiFeO2", "4"),
        ("SrTiO3", "1"), ("SrTiO3", "2"), ("SrTiO3", "4"),
    ]  # fmt: skip
    assert len(ase.io.read(tmp_path / "crystals.extxyz", ":")) == 48


def test_a_table_gives_one_crystal_per_row_in_its_order(crystorus, tmp_path):
    structures = [
        Atoms("LiFeO2", scaled_positions=SITES, cell=[4, 4, 5], pbc=True),
        bulk("Fe", "bcc", a=2.87),
        bulk("Fe", "bcc", a=2.9),
    ]
    ase.io.write(tmp_path / "like.extxyz", structures)
    code, _, _ = crystorus("sample", "--like", tmp_path / "like.extxyz", "--out", tmp_path / "out")
    frames = ase.io.read(tmp_path / "out/crystals.extxyz", ":")
    assert code == 0
    assert [sorted(f.numbers) for f in frames] == [sorted(s.numbers) for s in structures]
    seeds = [row["seed"] for row in rows_of(tmp_path / "out")]
    assert len(set(seeds)) == 3


def test_a_system_gives_every_composition_once_and_its_count_first(crystorus, tmp_path):
    code, _, stderr = crystorus(
        "sample", "--system", "Li-Fe-O", "--max-atoms", 4, "--out", tmp_path
    )
    assert code == 0
    assert stderr.splitlines()[0].startswith("plan: 34 crystals of 34 compositions")
    found = {(row["formula"], row["formula_units"]) for row in rows_of(tmp_path)}
    assert len(found) == 34
    assert {("Li", "1"), ("Fe", "4"), ("LiO", "2"), ("LiFeO2", "1")} <= found


def test_a_long_run_tells_how_long_it_will_take(crystorus, tmp_path, monkeypatch):
    system = ("sample", "--system", "Li-O", "--max-atoms", 4)
    assert "to go" not in crystorus(*system, "--out", tmp_path / "short")[2]
    monkeypatch.setattr(command, "TELLING", 0.0)
    monkeypatch.setattr(command, "TOLD", 0.0)
    stderr = crystorus(*system, "--batch-atoms", 4, "--out", tmp_path / "long")[2]
    assert stderr.count("minutes to go") == 1


def test_an_element_never_seen_is_a_warning_and_work_goes_on(crystorus, tmp_path):
    code, _, stderr = crystorus("sample", "XeF2", "--out", tmp_path)
    assert code == 0
    assert "warning: F was never seen in training" in stderr
    assert "warning: Xe was never seen in training" in stderr
    assert len(rows_of(tmp_path)) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Xx2O3"], ["Xx"]),
        (["Li0O"], ["0", "1 to"]),
        (["Li-2O"], ["-2"]),
        (["Li2O)"], ["Li2O)", "character 5", "')'"]),
        ([""], ["empty", "LiFeO2"]),
        (["LiFeO2", "--z", "6"], ["24 atoms", "at most 20", "--z"]),
        (["LiFeO2", "--n", "0"], ["0 crystals", "1 or more"]),
        (["LiFeO2", "--steps", "0"], ["0 steps", "1 or more"]),
        (["LiO", "--candidates", "0"], ["0 candidates", "1 to 1000"]),
        (["LiO", "--workers", "0"], ["--workers is 0"]),
        (["LiO", "--quality", "fast", "--steps", "5"], ["--quality fast is a sampler with its"]),
        (["LiFeO2", "--steps", "2000"], ["2000 steps", "1 to 1000"]),
        (["LiFeO2", "--anti-annealing", "nan"], ["nan", "finite"]),
        (["LiFeO2", "--symprec", "0"], ["--symprec is 0", "0.1"]),
        (["LiFeO2", "--batch-atoms", "0"], ["--batch-atoms is 0", "1 or more"]),
        (["LiFeO2", "--device", "banana"], ["--device banana", "cpu"]),
        ([], ["no composition", "--like", "--system"]),
        (["LiFeO2", "--system", "Li-O"], ["formulas and --system"]),
        (["--system", "Li-O"], ["--max-atoms"]),
        (["--system", "Li-Li", "--max-atoms", "4"], ["Li more than once"]),
        (["--system", "Li-Fe-O", "--max-atoms", "4", "--z", "2"], ["--z 2", "leave it out"]),
        (["LiFeO2", "--max-atoms", "4"], ["--max-atoms 4", "--system"]),
        (["--like", "nothing.csv"], ["nothing.csv", "does not exist"]),
    ],
)
def test_what_makes_no_sense_is_one_sentence_and_writes_nothing(
    crystorus, tmp_path, arguments, words
):
    refused(crystorus, words, "sample", *arguments, "--out", tmp_path / "out")
    assert not list(tmp_path.rglob("*.cif"))
    assert not (tmp_path / "out/run.json").exists()


CIF = """data_x
_cell_length_a 3
_cell_length_b 3
_cell_length_c 3
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma {gamma}
loop_
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Fe 0 0 {z} {occupancy}
"""


def cut_short():
    """A gzipped table with good rows whose end is missing."""
    row = CIF.format(gamma=90, z=0, occupancy=1)
    return gzip.compress(("material_id,cif\n" + f'1,"{row}"\n' * 500).encode())[:-20]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.csv", b"", ["empty.csv", "empty"]),
        ("rows.csv", b"formula\nLiFeO2\n", ["cif"]),
        ("cut.csv", b'material_id,cif\n1,"data_x\n_cell', ["cut"]),
        ("cut.csv.gz", cut_short(), ["torn", "whole file"]),
        ("partial.cif", CIF.format(gamma=90, z=0, occupancy=0.5).encode(), ["0.5"]),
        ("flat.cif", CIF.format(gamma=0, z=0, occupancy=1).encode(), ["cell"]),
        ("nan.cif", CIF.format(gamma=90, z="nan", occupancy=1).encode(), ["nan"]),
        (
            "twice.cif",
            CIF.format(gamma=90, z=0, occupancy="1\nFe 1 1 1 1").encode(),
            ["two atoms are 0.000 Å apart", "count one twice"],
        ),
        ("nocell.cif", CIF[CIF.index("loop_") :].format(z=0, occupancy=1).encode(), ["cell"]),
    ],
)
def test_structures_that_cannot_be_used_are_one_sentence(crystorus, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    refused(crystorus, words, "sample", "--like", tmp_path / name, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Hostile:
    """A pickle that leaves a trace if it is ever executed."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def test_a_checkpoint_that_is_a_pickle_is_refused_and_never_run(crystorus, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "load_checkpoint", load_checkpoint)
    folder, trace = tmp_path / "checkpoint", tmp_path / "executed"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(pickle.dumps(Hostile(trace)))
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    card = {"format": 1, "sha256": digest, "config": {}, "trained_elements": [8], "max_atoms": 20}
    (folder / "card.json").write_text(json.dumps(card))
    arguments = ["sample", "LiFeO2", "--checkpoint", folder, "--out", tmp_path / "out"]
    refused(crystorus, ["weights.safetensors"], *arguments)
    assert not trace.exists()
    pickle.loads((folder / "weights.safetensors").read_bytes())  # noqa: S301
    assert trace.exists(), "the trap itself works"


@pytest.mark.parametrize("verb", [["sample", "LiFeO2", "--checkpoint"], ["info"]])
def test_a_checkpoint_that_is_not_there_is_named(crystorus, tmp_path, monkeypatch, verb):
    monkeypatch.setattr(checkpoint, "load_checkpoint", load_checkpoint)
    monkeypatch.chdir(tmp_path)
    refused(crystorus, ["nowhere", "card.json"], *verb, tmp_path / "nowhere")


def test_a_folder_with_another_run_is_refused_until_told_otherwise(crystorus, tmp_path):
    assert crystorus("sample", "LiFeO2", "--out", tmp_path)[0] == 0
    refused(
        crystorus,
        ["another run", "seed is 0, yours is 1", "--out", "--overwrite"],
        *("sample", "LiFeO2", "--seed", 1, "--out", tmp_path),
    )
    assert crystorus("sample", "LiFeO2", "--seed", 1, "--out", tmp_path, "--overwrite")[0] == 0


def test_a_finished_run_says_so(crystorus, tmp_path):
    crystorus("sample", "LiFeO2", "--out", tmp_path)
    code, stdout, stderr = crystorus("sample", "LiFeO2", "--out", tmp_path)
    assert code == 0
    assert "already holds all of this run: 1 crystal\n" in stderr
    assert "0 made" in stdout


@pytest.mark.parametrize("name", ["crystals.extxyz", "table.csv", "cif/00000-LiFeO2.cif"])
def test_a_finished_run_that_lost_a_file_says_which(crystorus, tmp_path, name):
    crystorus("sample", "LiFeO2", "--out", tmp_path)
    (tmp_path / name).unlink()
    refused(crystorus, [name, "--overwrite"], "sample", "LiFeO2", "--out", tmp_path)
    assert crystorus("sample", "LiFeO2", "--out", tmp_path, "--overwrite")[0] == 0
    assert (tmp_path / name).is_file()


@pytest.mark.parametrize("text", ["[1, 2]", "{}", '{"settings": 3, "versions": {}}', "null"])
def test_a_record_that_is_none_is_refused(crystorus, tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    refused(crystorus, ["run.json", "--overwrite"], "sample", "LiFeO2", "--out", tmp_path)
    assert (tmp_path / "run.json").read_text() == text


def test_a_device_that_holds_no_numbers_is_refused(crystorus, tmp_path):
    words = ["--device meta", "try cpu"]
    refused(crystorus, words, "sample", "LiFeO2", "--device", "meta", "--out", tmp_path)


def test_the_card_of_damaged_weights_is_not_shown(crystorus, tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"whole")
    card = {
        "format": 1,
        "config": {},
        "sha256": hashlib.sha256(b"whole").hexdigest(),
        "trained_elements": [8],
        "max_atoms": 20,
    }
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert crystorus("info", tmp_path)[0] == 0
    weights.write_bytes(b"who")
    refused(crystorus, ["truncated or was replaced", "copy"], "info", tmp_path)
    weights.unlink()
    refused(crystorus, ["missing", "both files"], "info", tmp_path)


def test_a_full_disk_is_one_sentence(crystorus, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(crystorus, ["no space left", "make room"], "sample", "LiFeO2", "--out", tmp_path)


def test_a_bug_is_one_sentence_that_asks_for_a_report(crystorus, tmp_path, monkeypatch):
    def broken(path, device="cpu"):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(checkpoint, "load_checkpoint", broken)
    words = ["ZeroDivisionError", "--debug", "report"]
    refused(crystorus, words, "sample", "LiFeO2", "--out", tmp_path)
    with pytest.raises(ZeroDivisionError):
        crystorus("--debug", "sample", "LiFeO2", "--out", tmp_path)


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(tmp_path):
    arguments = ["sample", "LiFeO2", "--n", "200", "--batch-atoms", "4", "--out"]
    child = subprocess.Popen(
        [sys.executable, FAKE, *arguments, tmp_path / "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"FAKE_STEP_S": "0.01", "OMP_NUM_THREADS": "1"},
        # Tests that run in the background may inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: len(list(tmp_path.glob("out/cif/*.cif"))) >= 3, child)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=300)
    assert child.returncode == 130
    assert "Traceback" not in stderr
    assert "what was finished is kept, the same command goes on" in stderr
    finished = rows_of(tmp_path / "out")
    assert 3 <= len(finished) < 200
    assert len(ase.io.read(tmp_path / "out/crystals.extxyz", ":")) == len(finished)


def wait_for(condition, child):
    deadline = time.monotonic() + 300
    while not condition():
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("typed", ["1,0", "two"])
def test_units_that_are_none_are_refused(crystorus, tmp_path, typed):
    words = ["--z", typed.split(",")[-1], "from 1 up"]
    refused(crystorus, words, "sample", "LiFeO2", "--z", typed, "--out", tmp_path, code=2)


def test_larger_cells_than_any_in_training_are_made_on_demand(crystorus, tmp_path):
    arguments = ("sample", "LiFeO2", "--z", 6, "--out", tmp_path / "out")
    refused(crystorus, ["24 atoms", "--large"], *arguments)
    code, _, stderr = crystorus(*arguments, "--large")
    assert code == 0
    assert "trained on at most 20: results for such cells are unreliable" in stderr
    assert len(ase.io.read(tmp_path / "out/crystals.extxyz")) == 24


def test_the_folder_is_named_after_the_formulas(crystorus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert crystorus("sample", "LiFeO2")[0] == 0
    assert crystorus("sample", "SrTiO3")[0] == 0
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["LiFeO2", "SrTiO3"]


def test_hardly_physical_distances_are_a_warning(crystorus, tmp_path, monkeypatch):
    class Close(FakeModel):
        def _crystal(self, numbers, seed):
            crystal = super()._crystal(numbers, seed)
            return crystal.with_geometry(0.5 * crystal.lattice, crystal.frac_coords)

    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda path, device="cpu": Close())
    _, _, stderr = crystorus("sample", "LiFeO2", "--n", 3, "--out", tmp_path)
    assert "3 crystals with atoms nearer than 0.6 of the sum of their covalent radii" in stderr
    assert all(float(row["min_distance_ratio"]) < 0.6 for row in rows_of(tmp_path))


def settings_of(folder):
    return json.loads((folder / "run.json").read_text())["settings"]


def test_a_quality_is_recorded_and_the_default_is_what_silence_gives(crystorus, tmp_path):
    for name, more in (("plain", ()), ("default", ("--quality", "default")),
                       ("fast", ("--quality", "fast"))):  # fmt: skip
        assert crystorus("sample", "LiO", "--out", tmp_path / name, *more)[0] == 0
    assert settings_of(tmp_path / "default")["options"] == {"quality": "default"}
    assert settings_of(tmp_path / "default") | {"options": {}} == settings_of(tmp_path / "plain")
    assert SamplerConfig(**settings_of(tmp_path / "fast")["sampler"]) == FAST
    again = crystorus("sample", "LiO", "--out", tmp_path / "default")
    assert "already holds all" in again[2]


def test_candidates_are_chosen_and_recorded(crystorus, tmp_path):
    plain, chosen = tmp_path / "plain", tmp_path / "chosen"
    assert crystorus("sample", "LiO", "FeO2", "--n", 3, "--out", plain)[0] == 0
    choice = ("--candidates", 6, "--keep-trajectory", "--out", chosen)
    assert crystorus("sample", "LiO", "FeO2", "--n", 3, *choice)[0] == 0
    assert [settings_of(folder)["candidates"] for folder in (plain, chosen)] == [1, 6]
    before = ase.io.read(plain / "crystals.extxyz", ":")
    after = ase.io.read(chosen / "crystals.extxyz", ":")
    longer = [new.cell.lengths()[0] >= old.cell.lengths()[0] for old, new in zip(before, after)]
    assert all(longer)
    told = [float(row["denoising_error"]) for row in rows_of(chosen)]
    assert told == pytest.approx([-atoms.cell.lengths()[0] for atoms in after], abs=1e-3)
    assert told == [atoms.info["denoising_error"] for atoms in after]
    assert {row["denoising_error"] for row in rows_of(plain)} == {""}
    steps = sorted((chosen / "trajectories").glob("*.extxyz"))
    assert [len(ase.io.read(one, ":")) for one in steps] == [3 + FINAL_REFINEMENT_STEPS] * 6
    for one, made in zip(steps, after, strict=True):
        assert ase.io.read(one, -1).cell.lengths() == pytest.approx(made.cell.lengths(), abs=1e-6)
    python = generate(["LiO", "FeO2"], n=3, model=FakeModel(), candidates=6).to_ase()
    for one, other in zip(python, after, strict=True):
        assert one.cell.cellpar() == pytest.approx(other.cell.cellpar(), abs=1e-6)


def test_on_a_terminal_there_is_a_bar_on_stderr_and_a_table_on_stdout(tmp_path):
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    command_line = [sys.executable, FAKE, "sample", "LiFeO2", "--n", "9", "--out", tmp_path]
    command_line += ["--batch-atoms", "4"]
    with subprocess.Popen(command_line, stdout=follower, stderr=follower, env=environment) as child:
        os.close(follower)
        shown = b""
        while True:
            try:
                chunk = os.read(leader, 4096)
            except OSError:
                break
            if not chunk:
                break
            shown += chunk
    os.close(leader)
    text = shown.decode()
    assert child.returncode == 0
    assert "crystals/s" in text
    assert "space groups" in text


def test_help_is_quick_because_nothing_heavy_is_imported():
    code = (
        "import sys, crystorus, crystorus.cli\n"
        "heavy = {'torch', 'numpy', 'ase', 'pymatgen', 'rich.table'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments", [[], ["sample"], ["train"], ["info"], ["data"], ["data", "get"], ["data", "build"]]
)
def test_every_command_explains_itself(crystorus, arguments):
    code, stdout, _ = crystorus(*arguments, "--help")
    assert code == 0
    assert "Usage: crystorus" in stdout


def test_version(crystorus):
    assert crystorus("--version")[1].startswith("crystorus ")


def test_a_configuration_that_is_not_there_is_named(crystorus, tmp_path):
    refused(crystorus, ["nothing.toml"], "train", tmp_path / "nothing.toml", tmp_path / "run")


def test_structures_become_a_store(crystorus, tmp_path):
    ase.io.write(tmp_path / "some.extxyz", [bulk("Fe"), bulk("Cu"), bulk("Fe", a=0.9)])
    code, stdout, stderr = crystorus("data", "build", tmp_path / "some.extxyz", tmp_path / "store")
    assert code == 0
    assert stdout.startswith("2 structures in")
    assert "1 left out" in stdout
    assert "left out: " in stderr
    refused(crystorus, ["does not exist"], "data", "build", tmp_path / "none", tmp_path / "store2")


@pytest.fixture
def empty_server(tmp_path):
    """A local server of an empty folder."""
    (tmp_path / "served").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", tmp_path / "served"
        server.shutdown()


def test_a_data_set_is_fetched_from_the_address_given(crystorus, empty_server, tmp_path):
    url, served = empty_server
    (served / "val.csv").write_text("material_id\n1\n")
    words = ["val.csv", "is not MP-20"]
    refused(crystorus, words, *data_get(tmp_path, url, "val"))
    refused(crystorus, ["train.csv"], *data_get(tmp_path, url, "train"))
    refused(crystorus, ["exam", "train"], *data_get(tmp_path, url, "exam"), code=2)
    assert not list((tmp_path / "data").glob("*.csv"))


def data_get(tmp_path, url, split):
    return "data", "get", "mp-20", "--folder", tmp_path / "data", "--split", split, "--url", url


def test_a_data_set_that_is_not_known_is_refused_with_the_names_there_are(crystorus):
    code, _, stderr = crystorus("data", "get", "mp-21")
    assert code == 2
    assert "mp-20" in stderr
