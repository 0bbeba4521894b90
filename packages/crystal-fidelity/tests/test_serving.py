"""Commands of one process answer as processes of their own do."""

import json
import subprocess
import sys

import pytest
from prototypes import everything

from crystal_fidelity.structures import to_pymatgen

METRICS = ["--metrics", "validity,density", "--workers", "1"]


@pytest.fixture
def crystals(tmp_path):
    folder = tmp_path / "crystals"
    folder.mkdir()
    for i, crystal in enumerate(everything()):
        (folder / f"{i}.cif").write_text(to_pymatgen(crystal).to(fmt="cif"))
    return folder


def fidelity(*words, given=None):
    command = [sys.executable, "-m", "crystal_fidelity", *map(str, words)]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)


def test_a_served_command_writes_what_a_command_writes(crystals, tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    words = ["compare", crystals, crystals, *METRICS, "--json"]
    wrong = ["compare", str(tmp_path / "none"), str(crystals)]
    unknown = ["compare", "--no-such-option"]
    requests = [wrong, [*map(str, words), str(one)], unknown, [*map(str, words), str(one)]]
    served = fidelity("serve", given="".join(json.dumps(r) + "\n" for r in requests))
    assert served.returncode == 0
    answers = [json.loads(line) for line in served.stdout.splitlines()]  # and nothing else
    assert [answer["status"] for answer in answers] == [2, 0, 2, 0]
    alone = fidelity(*words, two)
    assert alone.returncode == 0
    assert json.loads(one.read_text()) == json.loads(two.read_text())
    assert answers[0]["error"] in " ".join(fidelity(*wrong).stderr.split())
    assert answers[2]["error"] == "exit status 2"
    assert "No such option" in served.stderr


def test_a_metric_that_cannot_be_computed_keeps_its_status(crystals, tmp_path):
    words = ["compare", crystals, crystals, "--metrics", "frechet", "--featurizer", "alignn"]
    words += ["--weights", tmp_path / "none.safetensors"]
    served = fidelity("serve", given=json.dumps([*map(str, words)]) + "\n")
    assert json.loads(served.stdout)["status"] == fidelity(*words).returncode != 0
