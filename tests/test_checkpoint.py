"""Checkpoints: what is written comes back, and what is damaged or hostile is refused."""

import errno
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import TINY

from crystal_fidelity.files import file_digest
from crystorus.checkpoint import (
    CARD,
    FORMAT,
    FORMER_SCORER_CARD,
    FORMER_SCORER_WEIGHTS,
    SCORER_CARD,
    SCORER_WEIGHTS,
    WEIGHTS,
    CheckpointError,
    load_checkpoint,
    read_scorer_card,
    save_checkpoint,
    save_scorer,
)
from crystorus.config import config_from_dict
from crystorus.crystal_model import build_model
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.networks.scorer import Scorer


@pytest.fixture
def saved(tmp_path) -> Path:
    """A checkpoint of a tiny untrained network."""
    torch.manual_seed(0)
    model = build_model(config_from_dict(TINY), CellStatistics.neutral())
    model.trained_elements = frozenset({3, 26, 8})
    model.card = {"note": "tiny"}
    save_checkpoint(model, tmp_path / "saved")
    return tmp_path / "saved"


def edit_card(folder: Path, **changes: object) -> None:
    card = json.loads((folder / CARD).read_text())
    card.update(changes)
    (folder / CARD).write_text(json.dumps(card))


def test_round_trip_keeps_weights_settings_and_card(saved):
    model = load_checkpoint(saved)
    again = saved.parent / "again"
    save_checkpoint(model, again)
    assert file_digest(saved / WEIGHTS) == file_digest(again / WEIGHTS)
    assert model.config == config_from_dict(TINY)
    assert model.trained_elements == {3, 26, 8}
    assert model.card == {"note": "tiny"}
    assert model.digest == file_digest(saved / WEIGHTS)


def test_saved_files_are_two_and_readable_by_all(saved):
    assert sorted(p.name for p in saved.iterdir()) == [CARD, WEIGHTS]
    assert all(p.stat().st_mode & 0o044 for p in saved.iterdir())


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.999])
def test_truncated_weights_are_refused(saved, keep):
    data = (saved / WEIGHTS).read_bytes()
    size = int(keep * len(data)) if isinstance(keep, float) else keep
    (saved / WEIGHTS).write_bytes(data[:size])
    with pytest.raises(CheckpointError, match="truncated or was replaced"):
        load_checkpoint(saved)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("card_agrees", [True, False])
def test_a_pickle_is_never_executed(saved, tmp_path, card_agrees):
    trap = tmp_path / "sprung"
    (saved / WEIGHTS).write_bytes(pickle.dumps(Bomb(trap)))
    if card_agrees:
        edit_card(saved, sha256=file_digest(saved / WEIGHTS))
    with pytest.raises(CheckpointError):
        load_checkpoint(saved)
    assert not trap.exists()
    pickle.loads((saved / WEIGHTS).read_bytes())  # the control: this one does spring  # noqa: S301
    assert trap.exists()


def test_a_newer_format_asks_for_an_upgrade(saved):
    edit_card(saved, format=FORMAT + 1)
    with pytest.raises(CheckpointError, match=f"format {FORMAT + 1}.*upgrade crystorus"):
        load_checkpoint(saved)


def test_weights_of_another_network_are_refused(saved):
    card = json.loads((saved / CARD).read_text())
    card["config"]["network"]["channels"] = 24
    edit_card(saved, config=card["config"])
    with pytest.raises(CheckpointError, match="do not fit the default network"):
        load_checkpoint(saved)


def test_weights_of_the_other_preset_are_refused(saved, tmp_path):
    paper = build_model(config_from_dict({"preset": "paper"}), CellStatistics.neutral())
    save_checkpoint(paper, tmp_path / "paper")
    shutil.copy(saved / WEIGHTS, tmp_path / "paper" / WEIGHTS)
    with pytest.raises(CheckpointError, match="truncated or was replaced"):
        load_checkpoint(tmp_path / "paper")
    edit_card(tmp_path / "paper", sha256=file_digest(saved / WEIGHTS))
    with pytest.raises(CheckpointError, match="do not fit the paper network"):
        load_checkpoint(tmp_path / "paper")


def test_settings_of_the_future_are_refused(saved):
    card = json.loads((saved / CARD).read_text())
    card["config"]["training"]["teleport"] = True
    edit_card(saved, config=card["config"])
    with pytest.raises(CheckpointError, match=r"does not know.*teleport"):
        load_checkpoint(saved)


def test_weights_that_are_not_finite_are_refused(saved):
    tensors = load_file(saved / WEIGHTS)
    name = next(k for k in tensors if tensors[k].dim() == 2 and not k.startswith("statistics"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, saved / WEIGHTS)
    edit_card(saved, sha256=file_digest(saved / WEIGHTS))
    with pytest.raises(CheckpointError, match=f"{name} is not finite"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": "x"}', '{"format": 1}', '{"format": 1e400}', "[" * 100_000],
)
def test_damaged_cards_are_refused(saved, text):
    (saved / CARD).write_text(text)
    with pytest.raises(CheckpointError, match=CARD):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trained_elements": ["x"]}, "damaged.*'x'"),
        ({"max_atoms": "many"}, "damaged.*'many'"),
        ({"max_atoms": float("inf")}, "damaged.*infinity"),
        ({"config": [1]}, "does not know"),
        ({"config": {"network": {"channels": 10**12}}}, "at most 1024"),
    ],
)
def test_cards_that_describe_no_network_are_refused(saved, changes, words):
    edit_card(saved, **changes)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(saved)
    assert len(str(caught.value)) < 600


def test_missing_files_are_named(saved, tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no card.json"):
        load_checkpoint(tmp_path / "nowhere")
    (saved / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"weights.safetensors is missing"):
        load_checkpoint(saved)


def test_a_full_disk_is_an_error_of_the_system(saved, monkeypatch):
    def full(tensors, name, metadata):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("crystorus.checkpoint.save_file", full)
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    model = load_checkpoint(saved)
    with pytest.raises(OSError, match="No space left") as caught:
        save_checkpoint(model, saved)
    assert caught.value.errno == errno.ENOSPC
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_a_failed_save_leaves_the_old_checkpoint(saved, monkeypatch):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    model = load_checkpoint(saved)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("crystorus.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(model, saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_a_scorer_is_read_by_its_present_and_its_former_name(saved):
    network = load_checkpoint(saved).denoiser.network
    save_scorer(Scorer(network, level=2), saved, {"note": "present"})
    loaded = load_checkpoint(saved).scorer
    assert loaded.level == 2
    assert loaded.digest == file_digest(saved / SCORER_WEIGHTS)
    (saved / SCORER_WEIGHTS).rename(saved / FORMER_SCORER_WEIGHTS)
    (saved / SCORER_CARD).rename(saved / FORMER_SCORER_CARD)
    assert load_checkpoint(saved).scorer.digest == loaded.digest
    save_scorer(Scorer(network, level=3), saved, {"note": "new"})
    assert read_scorer_card(saved)["card"] == {"note": "new"}
    assert sorted(p.name for p in saved.iterdir()) == sorted(
        [CARD, WEIGHTS, SCORER_CARD, SCORER_WEIGHTS]
    )


def test_a_checkpoint_of_an_older_version_is_read(saved):
    """Former names of the sampler's settings, as cards had them."""
    card = json.loads((saved / CARD).read_text())
    sampling = card["config"]["sampling"]
    for old, new in (("first", "first_fraction"), ("settle", "final_refinement_steps")):
        sampling[old] = sampling.pop(new)
    sampling["settle"] = 4
    edit_card(saved, config=card["config"])
    assert load_checkpoint(saved).config.sampling.final_refinement_steps == 4
