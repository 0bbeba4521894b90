"""From templates to files: what starts where, what keeps its symmetry, what is refused."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import ase.io
import moyopy
import numpy as np
import pytest
import torch
from commandline import CliRunner
from hostile_files import SYMMETRIC
from prototypes import perovskite, rocksalt, zincblende

import crystorus
from crystal_fidelity.cif import parse_cif
from crystal_fidelity.structures import from_atoms
from crystal_fidelity.symmetry import space_group
from crystorus import cli
from crystorus.checkpoint import save_checkpoint
from crystorus.config import SamplerConfig, load_config
from crystorus.crystal_model import build_model
from crystorus.data.compositions import Composition
from crystorus.data.convert import crystals_to_atoms, crystals_to_structures
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.errors import RequestError
from crystorus.geometry import Crystals
from crystorus.sample.options import SampleOptions
from crystorus.sample.output import OutputFolder, describe, run_settings
from crystorus.sample.refine import held_atoms
from crystorus.sample.requests import make_requests
from crystorus.sample.sampler import TEMPLATE_SAMPLER, GeneratedCrystals, SamplingPlan
from crystorus.sample.start import StartingStructure, origin_of, phase_of, start_of
from crystorus.templates.library import build_library, open_library

SMOKE = Path(__file__).parents[2] / "configs/smoke.toml"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guided")
    torch.manual_seed(0)
    model = build_model(load_config(SMOKE, []), CellStatistics.neutral())
    model.trained_elements = frozenset({3, 8, 22, 26, 38, 11, 17})
    model.card = {"data": "none", "validation": {"crystals": 0}}
    save_checkpoint(model, folder / "model")
    known = Crystals.concat([rocksalt(), zincblende(), perovskite()])
    frames = crystals_to_atoms(known)
    for frame, name in zip(frames, ["salt", "blende", "perovskite"], strict=True):
        frame.info["material_id"] = name
    ase.io.write(folder / "known.extxyz", frames)
    build_library(folder / "known.extxyz", folder / "known.templates")
    return folder


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], prog_name="crystorus")


def sampled(files, out, *arguments):
    return run("sample", *arguments, "--checkpoint", files / "model", "--out", out)


def rows_of(out):
    with (out / "table.csv").open(newline="") as text:
        return list(csv.DictReader(text))


def test_samples_take_a_prototype_each_and_noise_when_they_run_out(files, tmp_path):
    library = files / "known.templates"
    result = sampled(files, tmp_path, "LiO", "SrTiO3", "Fe3O4", "--n", 3, "--library", library)
    assert result.exit_code == 0, result.output
    starts = [row["start"] for row in rows_of(tmp_path)]
    assert set(starts[:2]) == {"salt", "blende"}
    assert starts[2:] == ["noise", "perovskite", "noise", "noise", "noise", "noise", "noise"]
    assert "no further template fits LiO, SrTiO3, Fe3O4" in result.output
    kinds = [row["origin"] for row in rows_of(tmp_path)]
    assert kinds[3] == "known"
    assert kinds[2] == "not in library"
    assert [row["substitution"] for row in rows_of(tmp_path)][2:] == [""] * 7


def test_both_alternates(files, tmp_path):
    options = ("--start", "both", "--library", files / "known.templates")
    assert sampled(files, tmp_path, "LiO", "--n", 4, *options).exit_code == 0
    starts = [row["start"] for row in rows_of(tmp_path)]
    assert starts[1] == starts[3] == "noise"
    assert {starts[0], starts[2]} == {"salt", "blende"}


def test_sampling_without_noise_keeps_the_space_group_and_noise_breaks_it(files, tmp_path):
    library = files / "known.templates"
    arguments = ("SrTiO3", "--library", library, "--symprec", 0.01, "--level", 0.5)
    assert sampled(files, tmp_path / "a", *arguments).exit_code == 0
    assert sampled(files, tmp_path / "b", *arguments, "--noised").exit_code == 0
    assert rows_of(tmp_path / "a")[0]["space_group_number"] == "221"
    assert rows_of(tmp_path / "b")[0]["space_group_number"] != "221"


def test_level_zero_is_substitution_alone(files, tmp_path):
    library = files / "known.templates"
    assert sampled(files, tmp_path, "LiO", "--library", library, "--level", 0).exit_code == 0
    (frame,) = ase.io.read(tmp_path / "crystals.extxyz", ":")
    assert symmetry_number(frame) in (225, 216)
    assert rows_of(tmp_path)[0]["origin"] == "substituted"


def test_a_known_compound_comes_out_as_it_is_unless_a_level_is_asked_for(files, tmp_path):
    library = files / "known.templates"
    itself = rocksalt()
    for name, extra, same in (("a", (), True), ("b", ("--level", 0.2), False)):
        arguments = ("NaCl", "SrTiO3", "--n", 2, "--library", library, *extra)
        assert sampled(files, tmp_path / name, *arguments).exit_code == 0
        frames = ase.io.read(tmp_path / name / "crystals.extxyz", ":")
        starts = [row["start"] for row in rows_of(tmp_path / name)]
        volume = frames[starts.index("salt")].cell.volume
        assert math.isclose(volume, float(itself.volume[0]), rel_tol=1e-6) is same


def symmetry_number(frame):
    return space_group(from_atoms(frame), 0.01).number


def test_noise_is_as_it_was_and_the_record_tells_the_runs_apart(files, tmp_path):
    plain, named = tmp_path / "a", tmp_path / "b"
    assert sampled(files, plain, "LiO", "--steps", 3).exit_code == 0
    assert sampled(files, named, "LiO", "--steps", 3, "--start", "noise").exit_code == 0
    assert (plain / "crystals.extxyz").read_bytes() == (named / "crystals.extxyz").read_bytes()
    record = json.loads((plain / "run.json").read_text())
    assert record["settings"]["template_sampler"] is None
    other = sampled(files, plain, "LiO", "--steps", 3, "--library", files / "known.templates")
    assert other.exit_code == 1
    assert "holds another run" in other.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--level", 0.5), "--level says nothing about --start noise"),
        (("--start", "noise", "--library", "x.templates"), "--library says nothing"),
        (("--start", "templates", "--level", 1.5), "--level is 1.5: give a fraction"),
        (("--library", "none.templates"), "does not exist"),
        (("--library", "."), "is a folder"),
        (("--start", "templates", "--level", 0, "--noised"), "--level 0 is substitution alone"),
        (("--start", "templates", "--sampler", "bridge"), "adds noise"),
        (("--new-only",), "--new-only has nothing to compare with"),
    ],
)
def test_options_that_make_no_sense_are_refused(files, tmp_path, arguments, message):
    result = sampled(files, tmp_path / "out", "LiO", *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_known_phase_is_named_whatever_it_was_made_of(files):
    """Na and Cl in the places of LiF give rock salt: known, not a new substitute."""
    salt, blende = rocksalt(), zincblende()
    other = Crystals(salt.lattice * 0.7, salt.frac_coords, torch.tensor([3, 9]), salt.n_atoms)
    composition = Composition.of([11, 17])
    (request,) = make_requests([composition])
    phases = (("salt", salt.to(dtype=torch.float32)),)
    known = StartingStructure("LiF", with_numbers(other, [11, 17]), 0.0)
    made = known.crystal
    assert origin_of(replace(request, start=known, known_phases=phases), made) == ("known", "salt")
    assert origin_of(replace(request, start=known), made) == ("substituted", "")
    assert origin_of(replace(request, known_phases=phases), made) == ("known", "salt")
    sphalerite = with_numbers(blende, [11, 17])
    assert origin_of(replace(request, known_phases=phases), sphalerite) == ("not in library", "")
    assert origin_of(request, sphalerite) == ("not compared", "")
    given = replace(known, same_composition=True)
    assert origin_of(replace(request, start=given), sphalerite) == ("changed", "")


def with_numbers(crystal, numbers):
    return Crystals(
        crystal.lattice, crystal.frac_coords, torch.tensor(numbers), crystal.n_atoms
    ).to(dtype=torch.float32)


def test_phases_are_those_of_the_reduced_formula(files):
    library = open_library(files / "known.templates")
    salt = Composition.of([11, 17])
    assert [library.ids[n] for n in library.phases(salt)] == ["salt"]
    assert library.phases(salt * 4) == library.phases(salt)
    assert library.phases(Composition.of([11, 17, 17])) == []


def test_new_only_passes_over_known_phases_and_writes_none(files, tmp_path):
    library = ("--library", files / "known.templates")
    assert sampled(files, tmp_path / "a", "NaCl", "--n", 2, *library).exit_code == 0
    assert {(r["start"], r["known_as"]) for r in rows_of(tmp_path / "a")} == {
        ("salt", "salt"),
        ("blende", ""),
    }
    result = sampled(files, tmp_path / "b", "NaCl", "--n", 2, *library, "--new-only")
    assert result.exit_code == 0, result.output
    assert [row["start"] for row in rows_of(tmp_path / "b")] == ["blende", "noise"]
    known = [row for row in rows_of(tmp_path / "b") if row["origin"] == "known"]
    frames = ase.io.read(tmp_path / "b/crystals.extxyz", ":")
    assert len(frames) == 2 - len(known)
    assert all(row["cif_file"] == "" for row in known)


def made_of(*pairs, trajectory=False):
    requests, crystals = zip(*pairs, strict=True)
    together = Crystals.concat(crystals)
    steps = (together,) if trajectory else ()
    return GeneratedCrystals(together, requests, steps, (math.nan,) * len(requests))


def test_a_known_phase_made_anyway_keeps_its_row_and_has_no_files():
    salt = rocksalt().to(dtype=torch.float32)
    (request,) = make_requests([Composition.of([11, 17])])
    request = replace(request, known_phases=(("salt", salt),))
    left_out = describe(made_of((request, salt)), symprec=0.1, total=1, new_only=True)
    assert (left_out.frame, left_out.files) == ("", {})
    assert (left_out.row["origin"], left_out.row["known_as"]) == ("known", "salt")
    assert describe(made_of((request, salt)), symprec=0.1, total=1).files
    blende = with_numbers(zincblende(), [11, 17])
    assert describe(made_of((request, blende)), symprec=0.1, total=1, new_only=True).files


def test_a_known_phase_is_left_out_of_the_trajectories_of_a_batch(files, tmp_path):
    """One crystal of a batch is known, the other is not: one trajectory, that of the other."""
    salt, blende = (with_numbers(c, [11, 17]) for c in (rocksalt(), zincblende()))
    requests = make_requests([Composition.of([11, 17])], n=2)
    requests = tuple(replace(r, known_phases=(("salt", salt),)) for r in requests)
    plan = SamplingPlan(TEMPLATE_SAMPLER, keep_trajectory=True)
    settings = run_settings(requests, plan, crystorus.load(files / "model"), SampleOptions())
    for new_only, names in ((True, ["00001-NaCl.extxyz"]),
                            (False, ["00000-NaCl.extxyz", "00001-NaCl.extxyz"])):  # fmt: skip
        with OutputFolder(tmp_path / str(new_only), settings, total=2) as folder:
            made = made_of(*zip(requests, (salt, blende), strict=True), trajectory=True)
            folder.commit(made, symprec=0.1, new_only=new_only)
        there = sorted((tmp_path / str(new_only) / "trajectories").iterdir())
        assert [path.name for path in there] == names


def test_the_symmetry_of_a_crystal_is_looked_for_once(monkeypatch):
    looked = []
    search = moyopy.MoyoDataset
    monkeypatch.setattr(moyopy, "MoyoDataset", lambda *a, **k: looked.append(1) or search(*a, **k))
    (request,) = make_requests([Composition.of([11, 17])])
    salt = with_numbers(rocksalt(), [11, 17])
    made = describe(made_of((request, salt)), symprec=0.1, total=1)
    assert made.row["space_group"] == "Fm-3m"
    assert "'F m -3 m'" in made.files["cif-symmetrised/00000-NaCl.cif"]
    assert len(looked) == 1


def test_candidates_are_refused_where_nothing_starts_at_noise(files):
    model, library = crystorus.load(files / "model"), files / "known.templates"
    with pytest.raises(RequestError, match=r"3 candidates.+ all 1 crystals start"):
        crystorus.generate("NaCl", model=model, library=library, level=0, candidates=3)
    sampler = SamplerConfig("ode", 2)
    mixed = crystorus.generate(
        "NaCl", n=2, model=model, library=library, start="both", sampler=sampler, candidates=2
    )
    assert [r.start is None for r in mixed.requests] == [False, True]


def test_python_has_the_options_of_the_command_line(files):
    model, library = crystorus.load(files / "model"), files / "known.templates"
    made = crystorus.generate("NaCl", n=2, model=model, library=library, level=0)
    assert {kind for kind, _ in made.origins()} == {"known", "substituted"}
    new = crystorus.generate("NaCl", n=1, model=model, library=library, level=0, new_only=True)
    assert [r.start.name for r in new.requests] == ["blende"]
    assert len(made.new()) == 1
    alternating = crystorus.generate("NaCl", n=2, model=model, library=library, start="both")
    assert [r.start is None for r in alternating.requests] == [False, True]
    with pytest.raises(RequestError, match="substitution alone"):
        crystorus.generate("NaCl", model=model, library=library, level=0, noised=True)
    with pytest.raises(RequestError, match="adds noise"):
        crystorus.generate("NaCl", model=model, library=library, sampler=SamplerConfig("bridge"))


def test_python_takes_a_library_too(files):
    model = crystorus.load(files / "model")
    made = crystorus.generate(
        ["LiO", "Fe3O4"],
        n=2,
        model=model,
        library=files / "known.templates",
        keep_trajectory=True,
    )
    names = [None if r.start is None else r.start.name for r in made.requests]
    assert set(names[:2]) == {"salt", "blende"}
    assert names[2:] == [None, None]
    steps_of = made.trajectory_to_ase()
    steps = model.config.sampling.steps
    assert [len(one) for one in steps_of] == [steps] * 4
    assert steps_of[0][TEMPLATE_SAMPLER.steps - 1] == steps_of[0][steps - 1] != steps_of[0][0]


def test_refining_holds_what_it_is_told_to(files, tmp_path):
    (frame,) = crystals_to_atoms(perovskite())
    frame = frame[[2, 0, 4, 1, 3]]  # not in the order of the formula
    frame.positions[0] += 0.1
    ase.io.write(tmp_path / "given.cif", frame)
    common = (tmp_path / "given.cif", "--checkpoint", files / "model", "--level", 0.5)
    held = ("--hold", "O,Sr", "--hold-cell", "--noised")
    done = run("refine", *common, *held, "--out", tmp_path / "held")
    assert done.exit_code == 0
    assert "note: 4 atoms of 5 held: a distortion among them stays" in done.output
    (row,) = csv.DictReader((tmp_path / "held/table.csv").open())
    assert row["prototype_fraction"] == ""
    (found,) = ase.io.read(tmp_path / "held/crystals.extxyz", ":")
    assert found.cell.cellpar() == pytest.approx(frame.cell.cellpar(), abs=1e-4)
    for symbol, same in (("O", True), ("Sr", True), ("Ti", False)):
        before = frame[[s == symbol for s in frame.symbols]].get_scaled_positions()
        after = found[[s == symbol for s in found.symbols]].get_scaled_positions()
        apart = abs((before - after + 0.5) % 1 - 0.5).max()
        assert (apart < 1e-4) == same, (symbol, apart)


def test_a_number_holds_the_atom_of_the_file_and_its_images():
    """Al2O3: one aluminium, listed first, makes 12 atoms, one oxygen 18."""
    corundum = parse_cif(SYMMETRIC, "corundum")
    aluminium = set(np.flatnonzero(corundum.atomic_numbers == 13).tolist())
    assert held_atoms("0", corundum) == held_atoms("Al", corundum) == aluminium
    assert len(held_atoms("1", corundum)) == 18
    with pytest.raises(RequestError, match="atoms 0 to 1 of its file"):
        held_atoms("2", corundum)


def test_refining_refuses_what_is_not_there(files, tmp_path):
    ase.io.write(tmp_path / "a.cif", crystals_to_atoms(rocksalt()))
    for arguments, message in (
        (("--hold", "K"), "has no 'K'"),
        (("--hold", "7"), "atoms 0 to 1"),
        (("--n", "2"), "add --noised"),
        (("--level", "0"), "--level is 0"),
        (("--hold", ","), "--hold is empty"),
        (("--hold", "Na,Cl", "--hold-cell"), "nothing of a is left to move"),
        (("--symprec", "-1"), "--symprec is -1"),
    ):
        result = run("refine", tmp_path / "a.cif", "--out", tmp_path / "o", *arguments)
        assert result.exit_code == 1
        assert message in result.output


def test_cells_unlike_any_crystal_are_refused_by_name(files, tmp_path):
    thin, wide = crystals_to_atoms(Crystals.concat([rocksalt(), rocksalt()]))
    thin.set_cell(thin.cell.array * [[1], [1], [0.2]], scale_atoms=True)
    wide.set_cell(wide.cell.array * 20, scale_atoms=True)
    for frame, message in ((thin, "limit"), (wide, "Å³ per atom")):
        ase.io.write(tmp_path / "odd.cif", frame)
        result = run("refine", tmp_path / "odd.cif", "--out", tmp_path / "o")
        assert result.exit_code == 1
        assert message in result.output
        assert "odd" in result.output


def test_a_changed_request_is_another_run(files, tmp_path):
    ase.io.write(tmp_path / "a.cif", crystals_to_atoms(rocksalt()))
    common = (tmp_path / "a.cif", "--checkpoint", files / "model", "--out", tmp_path / "o")
    assert run("refine", *common).exit_code == 0
    assert "already holds" in run("refine", *common).output
    for change in (("--hold", "Na"), ("--hold-cell",), ("--level", 0.3)):
        assert "holds another run" in run("refine", *common, *change).output
    ase.io.write(tmp_path / "a.cif", crystals_to_atoms(zincblende()))
    assert "holds another run" in run("refine", *common).output


def test_the_smallest_level_is_a_step():
    known = StartingStructure("salt", rocksalt().to(dtype=torch.float32), 1e-6)
    request = make_requests([Composition.of([11, 17])])[0]
    start = start_of([replace(request, start=known)], 1000)
    assert start is not None
    assert start.level.tolist() == [1]


def test_whether_a_structure_still_is_what_it_was():
    salt = rocksalt().to(dtype=torch.float32)
    assert phase_of(salt, [("salt", salt)]) == "salt"
    blende = Crystals(
        salt.lattice, zincblende().frac_coords.float(), salt.atomic_numbers, salt.n_atoms
    )
    assert phase_of(blende, [("salt", salt)]) is None
    assert phase_of(blende, [("salt", salt), ("blende", blende)]) == "blende"


def test_structures_from_python_are_refined(files):
    model = crystorus.load(files / "model")
    atoms, structure = crystals_to_atoms(rocksalt())[0], crystals_to_structures(zincblende())[0]
    atoms.rattle(0.05, seed=1)
    made = crystorus.refine([atoms, structure], model=model, hold="0", hold_cell=True, level=0.3)
    assert [one.get_chemical_formula() for one in made.to_ase()] == ["ClNa", "SZn"]
    assert made.to_ase()[0].cell.cellpar() == pytest.approx(atoms.cell.cellpar(), abs=1e-4)
    again = crystorus.refine(made, model=model, level=0.1)
    assert len(again) == 2
    with pytest.raises(RequestError, match="did you mean hold_cell"):
        crystorus.refine(atoms, model=model, hold_cel=True)


def test_large_structures_are_refined_on_demand(files, tmp_path):
    frame = crystals_to_atoms(rocksalt())[0].repeat((3, 2, 2))
    ase.io.write(tmp_path / "large.cif", frame)
    common = ("refine", tmp_path / "large.cif", "--checkpoint", files / "model", "--out", tmp_path)
    result = run(*common)
    assert result.exit_code == 1
    assert "24 atoms" in result.output
    assert "say --large" in result.output
    assert "--z" not in result.output
    assert run(*common, "--large").exit_code == 0
