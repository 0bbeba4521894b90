"""Training inside the crystals' own space groups: which noise, which losses, which files."""

import csv
import dataclasses
import hashlib
import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
import spglib
import torch
from explained import columns_explained
from prototypes import SPACE_GROUPS, all_prototypes
from runs import config, outcome, same
from safetensors.torch import load_file, save_file

import crystorus
from crystorus.checkpoint import (
    SHIPPED,
    load_checkpoint,
    read_scorer_card,
    read_skeletons,
)
from crystorus.config import load_config
from crystorus.data.batches import CrystalDataset
from crystorus.data.convert import split
from crystorus.data.store import build_store, open_store
from crystorus.data.writers import extxyz_text
from crystorus.errors import TrainingError
from crystorus.geometry import Crystals
from crystorus.geometry.lattice import from_coefficients, symmetric_exp
from crystorus.geometry.symmetry import supercell
from crystorus.train import loop
from crystorus.train.log import COLUMNS, MetricsLog
from crystorus.train.loop import train
from crystorus.train.space_groups import SymmetricBatches, find_symmetry

torch.set_num_threads(1)
CONFIG = Path(__file__).parents[2] / "configs" / "default.toml"


@pytest.fixture(scope="module")
def symmetric(tmp_path_factory) -> Path:
    """Prototypes in primitive cells and in doubled ones."""
    folder = tmp_path_factory.mktemp("symmetric")
    several = [c for c in all_prototypes().values() if int(c.n_atoms) <= 6]
    several += [supercell(c, (2, 1, 1)) for c in several]
    for name in ("train", "validation"):
        (folder / f"{name}.extxyz").write_text(extxyz_text(Crystals.concat(several)))
        build_store(folder / f"{name}.extxyz", folder / f"{name}.store")
    return folder


def batches_of(folder):
    store = open_store(folder / "train.store")
    crystals = CrystalDataset(store, np.arange(len(store)))
    skeletons, images = find_symmetry(crystals)
    return skeletons, SymmetricBatches(crystals, images)


def order(crystal) -> int:
    """Number of rotations by spglib, within 0.01 Å, R and -R counted as one."""
    cell = (crystal.lattice, crystal.frac_coords, crystal.atomic_numbers)
    rotations = spglib.get_symmetry(cell, symprec=0.01)["rotations"]
    proper = rotations * np.rint(np.linalg.det(rotations)).astype(int)[:, None, None]
    return len(np.unique(proper, axis=0))


def test_noise_keeps_the_group_in_any_cell_and_free_noise_does_not(symmetric):
    _, batches = batches_of(symmetric)
    crystals, groups = batches[range(len(batches.crystals))]
    generator = torch.Generator().manual_seed(0)
    atoms = 0.05 * torch.randn(crystals.frac_coords.shape, generator=generator)
    cells = 0.1 * torch.randn(len(crystals), 6, generator=generator)

    def orders(atoms, cells):
        lattice = symmetric_exp(from_coefficients(cells)) @ crystals.lattice
        noisy = crystals.with_geometry(lattice, crystals.frac_coords + atoms)
        return [order(c) for c in split(noisy)]

    # A doubled cell has the translation, but not the rotations that turn it out of itself.
    kept = [len(one.rotations) for one in batches.images]
    assert kept[: len(kept) // 2] == [order(c) for c in split(crystals)][: len(kept) // 2]
    assert orders(*groups.project_noise(atoms, cells, crystals.lattice)) == kept
    assert all(n < m for n, m in zip(orders(atoms, cells), kept, strict=True) if m > 4)
    # Crystals that are taken out of their groups are noised as drawn, the others as before.
    free = torch.arange(len(crystals)) % 2 == 0
    some = groups.without(free, crystals.crystal_of_atom)
    mixed, all_inside = (g.project_noise(atoms, cells, crystals.lattice) for g in (some, groups))
    for drawn, part, inside, here in (
        (atoms, mixed[0], all_inside[0], free[crystals.crystal_of_atom]),
        (cells, mixed[1], all_inside[1], free),
    ):
        torch.testing.assert_close(part[here], drawn[here])
        torch.testing.assert_close(part[~here], inside[~here])


def test_a_cell_that_is_made_ideal_lends_no_operations(tmp_path):
    # Within 0.05 Å the vectors of a needle are blurred: its cell is made ideal, and is another one.
    cscl = all_prototypes()["cscl"]
    lattice = cscl.lattice * torch.tensor([1.0, 1.0, 60.0])
    needle = cscl.with_geometry(lattice, cscl.frac_coords)
    (tmp_path / "one.extxyz").write_text(extxyz_text(needle))
    store = build_store(tmp_path / "one.extxyz", tmp_path / "one.store")
    (skeleton,), (images,) = find_symmetry(CrystalDataset(store, np.arange(1)))
    print(skeleton, images)
    assert skeleton.group == 123
    assert images.representative.tolist() == [0, 1]


def symmetric_config(folder, fraction, **training):
    return config(folder, symmetric_fraction=fraction, sample_every=0, **training)


@pytest.mark.parametrize(("fraction", "least", "most"), [(0.0, 0, 0), (0.5, 0.3, 0.7), (1.0, 1, 1)])
def test_so_many_crystals_are_noised_inside_their_groups(
    symmetric, tmp_path, monkeypatch, fraction, least, most
):
    isotropic, real = [], loop.losses_at_noise

    def watched(denoiser, diffusion, batch, t, atoms, cells):
        if torch.is_grad_enabled():  # not in validation
            isotropic.extend((cells[:, :5].abs() < 1e-5).all(1).tolist())
        return real(denoiser, diffusion, batch, t, atoms, cells)

    monkeypatch.setattr(loop, "losses_at_noise", watched)
    train(symmetric_config(symmetric, fraction, epochs=4), tmp_path / "run")
    # The only strain that a cubic cell keeps is that of its volume.
    skeletons, batches = batches_of(symmetric)
    pairs = zip(skeletons, batches.images, strict=True)
    cubic = sum(one.group >= 195 and len(images.rotations) >= 24 for one, images in pairs)
    assert least <= sum(isotropic) / (4 * cubic) <= most


def test_checkpoints_hold_the_skeletons_and_sample_inside_space_groups(symmetric, tmp_path):
    train(symmetric_config(symmetric, 0.7, epochs=1), tmp_path / "run")
    expected, _ = batches_of(symmetric)
    assert {one.group for one in expected} <= set(SPACE_GROUPS.values())
    for name in ("best", "last"):
        assert list(read_skeletons(tmp_path / "run" / name)) == list(expected)
    train(symmetric_config(symmetric, 0.0, epochs=1), tmp_path / "free")
    assert not (tmp_path / "free" / "last" / "skeletons.safetensors").exists()


def test_validation_has_both_parts_and_the_loss_weighs_them_as_training_does(symmetric, tmp_path):
    train(symmetric_config(symmetric, 0.7, epochs=1), tmp_path / "run")
    train(symmetric_config(symmetric, 0.0, epochs=1, learning_rate=1e-12), tmp_path / "free")

    def last(folder):
        with (folder / "metrics.csv").open(newline="") as stream:
            return list(csv.DictReader(stream))[-1]

    row = {k: float(v) for k, v in last(tmp_path / "run").items() if k.startswith("val/")}
    free, inside = (row[f"val/{k}cell"] + row[f"val/{k}torus"] for k in ("", "symmetric_"))
    assert row["val/loss"] == pytest.approx(0.3 * free + 0.7 * inside, rel=1e-5)
    assert free != pytest.approx(inside, rel=0.05)
    for kind in ("cell", "torus"):
        fifths = [row[f"val/symmetric_{kind}_{i}"] for i in range(1, 6)]
        assert min(fifths) <= row[f"val/symmetric_{kind}"] <= max(fifths)
    assert last(tmp_path / "free")["val/symmetric_cell"] == ""


def test_a_run_of_fewer_columns_keeps_its_lines(tmp_path):
    old = [c for c in COLUMNS if "symmetric" not in c]
    lines = [",".join(old), ",".join(["7", *["1.5"] * (len(old) - 1)]), "8,1.5", ""]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    log = MetricsLog(tmp_path, last_step=9)
    log.write(9, {"val/symmetric_cell": 0.25})
    log.close()
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        first, second = csv.DictReader(stream)
    assert (first["step"], first["val/loss"], first["val/symmetric_cell"]) == ("7", "1.5", "")
    assert (second["step"], second["val/symmetric_cell"]) == ("9", "0.25")


def test_every_column_is_explained():
    assert sorted(columns_explained("train")) == sorted(COLUMNS)


def test_the_shipped_weights_can_be_trained_further_with_the_configuration(symmetric, tmp_path):
    training = ["training.epochs=1", "training.learning_rate=1e-12", "training.sample_every=0"]
    places = [f"data.{n}={symmetric / n}.store" for n in ("train", "validation")]
    settings = load_config(CONFIG, [*training, *places, "training.start_from=shipped"])
    assert settings.training.symmetric_fraction == 0.7
    train(settings, tmp_path / "run")
    before, after = (load_file(p / "weights.safetensors") for p in (SHIPPED, tmp_path / "run/last"))
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-7)


def test_a_run_from_a_checkpoint_keeps_what_sampling_needs_of_it(symmetric, tmp_path, capsys):
    """Ten crystals know little: fine-tuned weights lost the skeletons of all others, the scorer."""
    crystals = ase.io.read(symmetric / "train.extxyz", ":10")
    ase.io.write(tmp_path / "ten.extxyz", crystals)
    data = [
        f"data.train={tmp_path / 'ten.extxyz'}",
        f"data.validation={symmetric}/validation.store",
    ]
    few = ["training.epochs=2", "training.learning_rate=1e-12", "training.start_from=shipped"]
    train(load_config(CONFIG, [*data, *few, "training.sample_every=0"]), tmp_path / "run")
    told = capsys.readouterr().err
    assert "before training, val" in told
    assert "set training.warmup_steps=" in told
    shipped, mine = (load_checkpoint(p) for p in (SHIPPED, tmp_path / "run" / "best"))
    kept = list(shipped.skeletons)
    assert list(mine.skeletons[: len(kept)]) == kept
    added = mine.skeletons[len(kept) :]
    assert 0 < len(added) <= 10
    assert not set(added) & set(kept)
    assert mine.trained_elements >= shipped.trained_elements
    assert mine.scorer_digest == shipped.scorer_digest
    about = read_scorer_card(tmp_path / "run" / "best")["card"]
    assert shipped.digest in about["fitted_with"]
    one, other = (crystorus.generate("LiFeO2", model=m, candidates=2) for m in (shipped, mine))
    assert one.scored_by == other.scored_by == "confidence"
    assert one.requests[0].skeletons == other.requests[0].skeletons
    assert other.scorer_error == pytest.approx(one.scorer_error, abs=0.01)
    # The same again: nothing is new, so that nothing counts twice.
    again = [*few[:2], f"training.start_from={tmp_path / 'run' / 'last'}"]
    train(load_config(CONFIG, [*data, *again, "training.sample_every=0"]), tmp_path / "again")
    assert list(read_skeletons(tmp_path / "again" / "last")) == list(mine.skeletons)


def test_a_scorer_is_told_one_of_the_noise_levels_and_goes_with_them(symmetric, tmp_path):
    data = [f"data.{n}={symmetric / n}.store" for n in ("train", "validation")]
    other = ["training.epochs=1", "training.start_from=shipped", "diffusion.steps=500"]
    train(load_config(CONFIG, [*data, *other, "training.sample_every=0"]), tmp_path / "run")
    mine = load_checkpoint(tmp_path / "run" / "last")
    assert mine.scorer is None
    assert mine.skeletons


def test_a_run_that_makes_its_start_no_better_says_that_best_is_the_start(
    symmetric, tmp_path, capsys
):
    data = [f"data.{n}={symmetric / n}.store" for n in ("train", "validation")]
    few = ["training.epochs=1", "training.start_from=shipped", "training.sample_every=0"]
    spoilt = [*few, "training.learning_rate=0.01", "training.warmup_steps=0"]
    train(load_config(CONFIG, [*data, *spoilt]), tmp_path / "spoilt")
    assert "best has the weights of the start" in capsys.readouterr().err
    before, best = (load_checkpoint(p) for p in (SHIPPED, tmp_path / "spoilt" / "best"))
    for old, new in zip(before.denoiser.parameters(), best.denoiser.parameters(), strict=True):
        assert torch.equal(old, new)


def test_a_run_begun_with_cells_in_other_units_is_not_gone_on_with(symmetric, tmp_path):
    """Until 0.2.0 a run with start_from measured cells by the statistics of its own crystals."""
    data = [f"data.{n}={symmetric / n}.store" for n in ("train", "validation")]
    few = ["training.start_from=shipped", "training.sample_every=0", "training.learning_rate=1e-9"]
    train(load_config(CONFIG, [*data, *few, "training.epochs=1"]), tmp_path / "run")
    longer = load_config(CONFIG, [*data, *few, "training.epochs=2"])
    file = tmp_path / "run" / "last" / "weights.safetensors"
    whole = file.read_bytes()
    tensors = load_file(file)
    tensors["statistics.volume_std"] = 2 * tensors["statistics.volume_std"]
    save_file(tensors, file)
    card = json.loads((file.parent / "card.json").read_text())
    old = json.dumps(card | {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()})
    (file.parent / "card.json").write_text(old)
    with pytest.raises(TrainingError, match=r"cells in other units.*start_from=.*last"):
        train(longer, tmp_path / "run", resume=True)
    file.write_bytes(whole)
    (file.parent / "card.json").write_text(json.dumps(card))
    train(longer, tmp_path / "run", resume=True)


def test_the_papers_preset_keeps_no_space_group(symmetric, tmp_path):
    settings = config(symmetric, preset="paper")
    wanted = dataclasses.replace(settings.training, symmetric_fraction=0.7)
    with pytest.raises(TrainingError, match=r"symmetric_fraction = 0\.7 is for the default preset"):
        train(dataclasses.replace(settings, training=wanted), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_fraction_is_another_run(symmetric, tmp_path):
    ends = []
    for name, fraction in (("some", 0.7), ("again", 0.7), ("none", 0.0)):
        train(symmetric_config(symmetric, fraction, epochs=1), tmp_path / name)
        ends.append(outcome(tmp_path / name))
    assert same(ends[0]["last"], ends[1]["last"])
    assert not same(ends[0]["last"], ends[2]["last"])
