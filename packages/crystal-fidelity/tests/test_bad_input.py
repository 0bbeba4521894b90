"""What a careless or hostile user feeds in: a clear error or a counted failure, never a number."""

import gzip
import json
import sys

import ase.io
import numpy as np
import pytest
from prototypes import everything, format_cif, rock_salt, simple_cubic

from crystal_fidelity import composition
from crystal_fidelity.cli import main
from crystal_fidelity.compare import compare
from crystal_fidelity.energies import References, load_references
from crystal_fidelity.errors import ReadingError
from crystal_fidelity.features import FeatureSet, Identity, save_features
from crystal_fidelity.frechet import frechet
from crystal_fidelity.matching import match_rate, unsearchable
from crystal_fidelity.options import Settings
from crystal_fidelity.reading import MAX_BLANK, read_structures
from crystal_fidelity.scores import rate_error
from crystal_fidelity.structures import Crystal, ReadFailure, to_atoms


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line as a user has it: exit status, standard output, standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["crystal-fidelity", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        streams = capsys.readouterr()
        return end.value.code or 0, streams.out, " ".join(streams.err.split())

    return call


def write(path, crystals):
    ase.io.write(path, [to_atoms(c) for c in crystals], format="extxyz")
    return path


def junk():
    return np.random.default_rng(0).bytes(4000)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.extxyz", b"", "holds no structure"),
        ("b.extxyz", b"\n\n", "holds no structure"),
        ("c.csv", b"", "is empty"),
        ("d.csv", b"material_id,cif\n", "holds no structure"),
        ("e.csv", junk(), "no cif column"),
        ("f.db", junk(), "not an ASE database"),
        ("g.csv.gz", b"hello", "torn or not what its name says"),
        ("h.npz", b"PK", "crystal-fidelity frechet"),
        ("i.txt", b"x", "of no known format"),
    ],
)
def test_files_without_structures_end_in_one_sentence(run, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    status, out, error = run("validity", path, "--workers", 1)
    assert status == 1
    assert message in error
    assert name in error
    assert "Traceback" not in error
    assert len(error) < 600
    assert "validity" not in out


def test_a_warning_of_the_reader_is_one_line_without_code(run, tmp_path):
    (tmp_path / "a.cif").write_text(format_cif(rock_salt()))
    (tmp_path / "notes.txt").write_text("x")
    status, _, error = run("validity", tmp_path, "--workers", 1)
    assert status == 0
    assert error.startswith("warning: ")
    assert error.endswith("1 other files are not read: notes.txt")


@pytest.mark.parametrize("name", ["a.poscar", "b.cif"])
def test_noise_in_place_of_structures_is_one_counted_failure(tmp_path, name):
    (tmp_path / name).write_bytes(junk())
    assert [type(e) for e in read_structures(tmp_path / name)] == [ReadFailure]


@pytest.mark.parametrize("count", ["9" * 12, "9" * 40, "²", "-1", "1e3"])
def test_absurd_numbers_of_atoms_are_named(tmp_path, count):
    (tmp_path / "a.extxyz").write_text(f"{count}\nx\nNa 0 0 0\n", encoding="utf-8")
    with pytest.raises(ReadingError, match="not a number of atoms"):
        read_structures(tmp_path / "a.extxyz")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('Lattice="1 0 0 2 0 0 0 0 1"', "one plane"),
        ('Lattice="9000 0 0 0 9 0 0 0 9"', "9000 Å > 1000 Å"),
        ('Lattice="1e308 0 0 0 1e308 0 0 0 1e308"', "1e+308 Å > 1000 Å"),
        ('Lattice="nan 0 0 0 1 0 0 0 1"', "NaN"),
        ('Lattice="4 0 0 0 4"', "9-long"),
    ],
)
def test_one_broken_frame_is_named_and_the_rest_read(tmp_path, line, reason):
    good = '1\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3\nNa 0 0 0\n'
    bad = f"1\n{line} Properties=species:S:1:pos:R:3\nNa 0 0 0\n"
    (tmp_path / "a.extxyz").write_text(good + bad + good)
    first, middle, last = read_structures(tmp_path / "a.extxyz")
    assert isinstance(middle, ReadFailure)
    assert reason in middle.reason
    assert isinstance(first, Crystal)
    assert isinstance(last, Crystal)


@pytest.mark.parametrize("energy", ["abc", '"1 2 3"', "T"])
def test_an_energy_that_is_no_number_is_missing(tmp_path, energy):
    head = f'Lattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 energy={energy}'
    (tmp_path / "a.extxyz").write_text(f"1\n{head}\nNa 0 0 0\n")
    (entry,) = read_structures(tmp_path / "a.extxyz")
    assert "energy" not in entry.properties


DEGENERATE = {
    "tiny": np.eye(3) * 1e-3,
    "needle": np.diag([0.05, 0.05, 900.0]),
    "pancake": np.diag([900.0, 900.0, 1e-4]),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_cells_do_not_take_all_memory(name):
    """StructureMatcher alone asks for more than 6 GiB for the first two."""
    salt = rock_salt()
    bad = Crystal(DEGENERATE[name], salt.frac_coords, salt.atomic_numbers, name)
    sparse = Crystal(np.diag([900.0, 4, 4]), salt.frac_coords, salt.atomic_numbers, "sparse")
    metrics = ("validity", "match", "metre", "uniqueness", "novelty", "spacegroups")
    result = compare([bad, salt], [salt, salt], Settings(metrics=metrics))
    assert result.match.outcomes[0].status in ("failed", "undecided")
    assert result.match.outcomes[1].status == "matched"
    assert not result.validity.valid[0]
    assert result.unique.all()
    assert result.novel.tolist() == [True, False]
    assert unsearchable(salt) is None
    assert unsearchable(sparse).status == "undecided"


def test_a_long_way_to_write_a_small_cell_can_be_searched():
    salt = rock_salt()
    skew = np.array([[1, 0, 0], [60, 1, 0], [0, 60, 1]], dtype=float)
    frac = salt.frac_coords @ np.linalg.inv(skew)
    skewed = Crystal(skew @ salt.lattice, frac, salt.atomic_numbers)
    assert match_rate([skewed], [salt]).mean_rms == pytest.approx(0, abs=1e-5)


def test_a_missing_extra_costs_its_metric_not_the_run(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "smact", None)
    monkeypatch.setattr(composition, "_is_known", composition._is_known.__wrapped__)
    made = write(tmp_path / "made.extxyz", [rock_salt()])
    arguments = ("compare", made, made, "--workers", 1, "--metrics")
    status, out, error = run(*arguments, "validity,composition")
    assert status == 3
    assert "not computed: composition: composition validity needs smact: pip install" in error
    assert "validity" in out
    status, _, error = run(*arguments, "composition")
    assert status == 1
    assert "needs smact" in error


@pytest.mark.parametrize("option", ["--known", "--weights", "--references", "--coverage-scale"])
def test_files_that_are_not_there_are_found_before_any_work(run, tmp_path, option):
    made = write(tmp_path / "made.extxyz", everything())
    status, out, error = run("compare", made, made, "--workers", 1, option, tmp_path / "no.x")
    assert status == 1
    assert f"it was given as {option}" in error
    assert out == ""


def test_a_torn_download_is_an_error_not_a_smaller_set(run, tmp_path):
    rows = "".join(f'{i},"{format_cif(rock_salt(5 + i / 1000))}"\n' for i in range(400))
    whole = gzip.compress(("material_id,cif\n" + rows).encode())
    path = tmp_path / "set.csv.gz"
    path.write_bytes(whole)
    assert len(read_structures(path)) == 400
    path.write_bytes(whole[: len(whole) // 2])
    status, out, error = run("validity", path, "--workers", 1)
    assert status == 1
    assert "is torn" in error
    assert "validity" not in out


def test_one_metric_that_cannot_be_does_not_cost_the_others(run, tmp_path):
    made = write(tmp_path / "made.extxyz", everything())
    arguments = ("compare", made, made, "--workers", 1, "--json", tmp_path / "out.json")
    status, out, error = run(*arguments, "--metrics", "validity,sun,density")
    assert status == 3
    assert "not computed: sun: no structure carries 'e_above_hull'" in error
    assert "density EMD" in out
    content = json.loads((tmp_path / "out.json").read_text())
    assert list(content["not_computed"]) == ["sun"]
    assert [s["name"] for s in content["scores"]] == ["validity", "density EMD"]
    status, _, error = run(*arguments, "--metrics", "sun")
    assert status == 1
    assert "e_above_hull" in error


def test_lengths_that_do_not_fit_are_found_before_any_work(run, tmp_path):
    made = write(tmp_path / "made.extxyz", everything())
    real = write(tmp_path / "real.extxyz", everything()[:4])
    for verb in (("match",), ("compare", "--metrics", "validity,match")):
        status, out, error = run(verb[0], made, real, *verb[1:], "--workers", 1)
        assert status == 1
        assert "6 generated structures and 4 references" in error
        assert "validity" not in out


def test_outputs_that_cannot_be_written_are_found_before_any_work(run, tmp_path):
    made = write(tmp_path / "made.extxyz", everything())
    for option in ("--html", "--json"):
        status, out, error = run("compare", made, made, option, tmp_path / "no" / "x")
        assert status == 1
        assert "cannot be written" in error
        assert out == ""


def test_one_structure_has_no_false_certainty():
    result = compare([rock_salt()], [rock_salt()], Settings(metrics=("validity", "density")))
    validity, density = result.scores
    assert validity.value == 1
    assert validity.uncertainty == pytest.approx(0.25)  # Wilson at n = 1
    assert np.isnan(density.real)
    with pytest.raises(ValueError, match="each set needs at least one"):
        compare([], [rock_salt()])


def test_error_of_a_rate_is_wilsons():
    from scipy.stats import binomtest, norm

    for hits, n in ((0, 10), (3, 10), (10, 10), (500, 1000)):
        level = 2 * norm.cdf(1) - 1
        interval = binomtest(hits, n).proportion_ci(level, method="wilson")
        assert rate_error(hits / n, n) == pytest.approx((interval.high - interval.low) / 2)


def test_too_few_features_name_the_set_and_a_reason():
    identity = Identity("net", "0" * 64, "none")
    many = FeatureSet(np.random.default_rng(0).normal(size=(9, 3)), ("x",) * 9, identity)
    few = FeatureSet(np.ones((1, 3)), ("a",), identity, (("b", "contact 0.1 Å"),))
    with pytest.raises(ValueError, match=r"1 of 2 generated .* such as b: contact 0\.1 Å"):
        frechet(few, many)
    with pytest.raises(ValueError, match="1 of 2 reference"):
        frechet(many, few)


def test_features_of_another_network_are_refused_on_the_command_line(run, tmp_path):
    rows = np.random.default_rng(0).normal(size=(9, 3))
    for name, weights in (("a.npz", "0" * 64), ("b.npz", "1" * 64)):
        identity = Identity("net", weights, "none")
        save_features(tmp_path / name, FeatureSet(rows, tuple("abcdefghi"), identity))
    status, out, error = run("frechet", tmp_path / "a.npz", tmp_path / "b.npz")
    assert status == 1
    assert "cannot be compared" in error
    assert "distance" not in out
    status, out, _ = run("frechet", tmp_path / "a.npz", tmp_path / "a.npz")
    assert status == 0
    assert "Fréchet" in out


@pytest.mark.slow
def test_hostile_structures_are_counted_by_every_metric(tmp_path):
    pytest.importorskip("chgnet")
    pytest.importorskip("matminer")
    pytest.importorskip("smact")
    crystal = rock_salt()
    bad = [
        Crystal(crystal.lattice, np.zeros((2, 3)), crystal.atomic_numbers, "coincident"),
        simple_cubic(0.4),
        simple_cubic(3.0, "Md"),
        Crystal(np.eye(3) * 30, np.zeros((1, 3)), np.array([11]), "lonely"),
        Crystal(np.diag([200.0, 2, 2]), np.zeros((1, 3)), np.array([11]), "needle"),
        ReadFailure("torn", "no atoms"),
    ]
    real = everything()
    metrics = (
        "validity", "composition", "density", "energy", "match", "metre", "uniqueness",
        "novelty", "spacegroups", "coverage", "frechet",
    )  # fmt: skip
    settings = Settings(metrics=metrics, cache=tmp_path)
    result = compare([*bad, *real], [*real, *real], settings)
    assert result.not_computed == {}
    scores = {s.name: s for s in result.scores}
    assert scores["validity"].value == pytest.approx(9 / 12)  # Md, lonely and needle are sparse
    assert scores["energy EMD"].n_generated == 7  # the needle has an energy
    assert scores["Fréchet CHGNet distance"].n_generated == 7
    assert "rank-deficient" in scores["Fréchet CHGNet distance"].protocol
    assert all(np.isfinite(s.value) for s in result.scores if s.name != "match RMSE, all, random")


def test_a_gzip_file_of_blank_lines_is_refused_soon(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"material_id,cif\n" + b"\n" * (MAX_BLANK + 1), 1))
    with pytest.raises(ReadingError, match="more than 1000000 blank lines: remove them"):
        read_structures(path)


@pytest.mark.parametrize(
    "change", [{"potentials": [1]}, {"potentials": {"Cu": float("nan")}}, {"n_fit": []}, {"x": 1}]
)
def test_references_of_another_shape_are_refused(tmp_path, change):
    References({"Cu": -3.7}, "emt", "s", 3, 0.1, 3).save(tmp_path / "r.json")
    record = json.loads((tmp_path / "r.json").read_text())
    assert load_references(tmp_path / "r.json").potentials == {"Cu": -3.7}
    (tmp_path / "r.json").write_text(json.dumps(record | change))
    with pytest.raises(ValueError, match="does not hold elemental references"):
        load_references(tmp_path / "r.json")


def test_all_metrics_of_sets_that_are_no_pairs_leave_matching_out(monkeypatch):
    every = ("validity", "match")
    monkeypatch.setattr(sys.modules["crystal_fidelity.compare"], "METRICS", every)
    sides = everything(), everything()[:4]
    result = compare(*sides, Settings(metrics=every, workers=1))
    assert [score.name for score in result.scores] == ["validity"]
    assert "6 generated structures and 4 references" in result.not_computed["match"]
    monkeypatch.undo()  # asked for by name
    with pytest.raises(ValueError, match="6 generated structures and 4 references"):
        compare(*sides, Settings(metrics=every, workers=1))
