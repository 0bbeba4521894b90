"""Every metric on real crystals against an independent road to the same number."""

import csv
import gzip
import itertools

import numpy as np
import pytest
from prototypes import rattled
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from crystal_fidelity.composition import is_charge_balanced
from crystal_fidelity.distances import density_emd, energy_emd
from crystal_fidelity.matching import match_rate, match_rate_best_of, metre, novel, unique
from crystal_fidelity.reading import read_structures
from crystal_fidelity.structures import Crystal, element_symbol, to_pymatgen
from crystal_fidelity.symmetry import space_groups
from crystal_fidelity.validity import structural_validity

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture(scope="module")
def rows(validation_csv):
    with gzip.open(validation_csv, "rt", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def crystals(validation_csv):
    return read_structures(validation_csv)


def area_between(a, b):
    """W1 as the area between the two distribution functions."""
    grid = np.sort(np.concatenate([a, b]))
    cdfs = [np.searchsorted(np.sort(v), grid[:-1], side="right") / len(v) for v in (a, b)]
    return np.sum(np.abs(cdfs[0] - cdfs[1]) * np.diff(grid))


def as_pymatgen(row):
    return Structure.from_str(row["cif"], fmt="cif")


def test_structures_are_those_of_pymatgens_own_reader(rows, crystals):
    for row, crystal in list(zip(rows, crystals, strict=True))[::150]:
        theirs = as_pymatgen(row)
        assert crystal.name == row["material_id"]
        metric = theirs.lattice.matrix @ theirs.lattice.matrix.T  # whatever the orientation
        np.testing.assert_allclose(crystal.lattice @ crystal.lattice.T, metric, atol=1e-6)
        apart = theirs.lattice.get_all_distances(crystal.frac_coords, theirs.frac_coords)
        np.testing.assert_allclose(np.diag(apart), 0, atol=1e-6)
        assert crystal.atomic_numbers.tolist() == list(theirs.atomic_numbers)


def test_validity_is_the_absence_of_pymatgens_short_contacts(crystals):
    some = [rattled(c, 1.5, i) for i, c in enumerate(crystals[::40])]
    result = structural_validity(some)
    pairs = structural_validity(some, contacts="pairs-only")
    for crystal, ours, loose in zip(some, result.valid, pairs.valid, strict=True):
        structure = to_pymatgen(crystal)
        distance = structure.get_neighbor_list(0.5)[3]
        assert ours == (len(distance) == 0)
        off = structure.distance_matrix + 10 * np.eye(len(structure))  # CDVAE's rule
        assert loose == (off.min() >= 0.5)
    assert 0.1 < result.rate < 0.9


def test_density_and_energy_distances_are_areas_between_distributions(rows, crystals):
    densities = np.array([float(as_pymatgen(row).density) for row in rows[:400]])
    energies = np.array([float(row["formation_energy_per_atom"]) for row in rows[:400]])
    left, right = crystals[:150], crystals[150:400]
    ours = density_emd(left, right).value
    assert ours == pytest.approx(area_between(densities[:150], densities[150:]), rel=1e-6)
    ours = energy_emd(left, right).value
    assert ours == pytest.approx(area_between(energies[:150], energies[150:]), rel=1e-9)
    assert ours > 0.01


def test_match_rate_and_rmse_are_pymatgens(rows, crystals):
    strengths = (0.2, 0.5, 1.0, 2.0)
    chosen = range(0, len(rows), 150)
    truth = [crystals[i] for i in chosen]
    guesses = [rattled(c, strengths[k % 4], k) for k, c in enumerate(truth)]
    second = [rattled(c, 0.4, 1000 + k) for k, c in enumerate(truth)]
    matcher = StructureMatcher(stol=0.5, ltol=0.3, angle_tol=10)
    found = [
        [matcher.get_rms_dist(to_pymatgen(s), as_pymatgen(rows[i])) for s in pair]
        for i, *pair in zip(chosen, guesses, second, strict=True)
    ]
    one = [f[0][0] for f in found if f[0]]
    result = match_rate(guesses, truth)
    assert result.rate == len(one) / len(truth)
    assert result.mean_rms == pytest.approx(np.mean(one), rel=1e-5)
    assert 0.3 < result.rate < 1
    best = [min(r[0] for r in f if r) for f in found if any(f)]
    result = match_rate_best_of([guesses, second], truth)
    assert result.rate == len(best) / len(truth) > len(one) / len(truth)
    assert result.mean_rms == pytest.approx(np.mean(best), rel=1e-5)


def polymorphs(crystals, n):
    """The first n crystals that share their composition with another."""
    together = {}
    for crystal in crystals:
        together.setdefault(crystal.formula, []).append(crystal)
    return [c for group in together.values() if len(group) > 1 for c in group][:n]


def test_metre_uniqueness_and_novelty_are_full_tables_of_pymatgen(crystals):
    real = polymorphs(crystals, 40)
    made = [rattled(c, 0.3, i) for i, c in enumerate(real[::2] + real[::4])]
    loose = StructureMatcher(stol=0.5, ltol=0.3, angle_tol=10)
    table = [[loose.get_rms_dist(to_pymatgen(m), to_pymatgen(r)) for m in made] for r in real]
    best = np.array([min((f[0] for f in row if f), default=np.inf) for row in table])
    result = metre(made, real)
    assert result.rate == np.isfinite(best).mean()
    assert result.corrected_rmse == pytest.approx(np.minimum(best, 0.5).mean(), rel=1e-5)
    assert 0 < result.rate < 1
    usual = StructureMatcher()
    groups = usual.group_structures([to_pymatgen(c) for c in real + made])
    assert unique(real + made).sum() == len(groups) < len(real + made)
    known = real[::2]
    fits = [any(usual.fit(to_pymatgen(k), to_pymatgen(m)) for k in known) for m in real]
    assert novel(real, known).tolist() == [not f for f in fits]
    assert 0 < sum(fits) < len(fits)


def test_space_groups_are_spglibs(crystals):
    some = crystals[::100]
    ours = space_groups(some)
    theirs = [
        SpacegroupAnalyzer(to_pymatgen(c), symprec=0.1).get_space_group_number() for c in some
    ]
    assert ours.tolist() == theirs
    assert len(set(theirs)) > 15


def balanced_by_enumeration(formula):
    """CDVAE's rule from its definition, with SMACT's tables only."""
    import smact

    symbols = [element_symbol(z) for z, _ in formula]
    if len(symbols) == 1 or all(s in smact.metals for s in symbols):
        return True
    elements = [smact.Element(s) for s in symbols]
    chi = [e.pauling_eneg for e in elements]
    for states in itertools.product(*[e.oxidation_states_smact14 or [] for e in elements]):
        if sum(q * n for q, (_, n) in zip(states, formula, strict=True)):
            continue
        if None in chi:
            return True
        cations = [x for x, q in zip(chi, states, strict=True) if q > 0]
        anions = [x for x, q in zip(chi, states, strict=True) if q < 0]
        if all(c < a for c in cations for a in anions):
            return True
    return False


def test_composition_validity_is_the_enumeration_of_oxidation_states(crystals):
    pytest.importorskip("smact")
    formulas = sorted({c.formula for c in crystals})
    verdicts = [is_charge_balanced(f) for f in formulas]
    assert verdicts == [balanced_by_enumeration(f) for f in formulas]
    assert 0.85 < np.mean(verdicts) < 0.95


def test_frechet_and_kernel_distance_are_their_definitions(crystals, tmp_path):
    pytest.importorskip("chgnet")
    import scipy.linalg

    from crystal_fidelity.features.chgnet import ChgnetModel
    from crystal_fidelity.frechet import frechet, kernel

    model = ChgnetModel(tmp_path)
    left, right = model.features(crystals[:4500:50]), model.features(crystals[4500::45])
    x, y = left.features, right.features
    c1, c2 = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(c1)
    cross = np.trace(scipy.linalg.sqrtm(root @ c2 @ root).real)
    by_definition = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(c1) + np.trace(c2) - 2 * cross
    assert frechet(left, right).value == pytest.approx(by_definition, rel=1e-4)

    def k(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    off = [k(s, s)[~np.eye(len(s), dtype=bool)].mean() for s in (x, y)]
    assert kernel(left, right).value == pytest.approx(sum(off) - 2 * k(x, y).mean(), rel=1e-9)


def test_coverage_is_the_definition_on_fingerprints_made_another_way(crystals, tmp_path):
    pytest.importorskip("matminer")
    from matminer.featurizers.composition.composite import ElementProperty
    from matminer.featurizers.site.fingerprint import CrystalNNFingerprint
    from matminer.featurizers.structure.sites import SiteStatsFingerprint

    from crystal_fidelity.coverage import coverage

    real = sorted(crystals[::200], key=len)[:24]
    made = [rattled(c, 0.4 * (i % 3), i) for i, c in enumerate(real[::2])]
    sites = SiteStatsFingerprint(CrystalNNFingerprint.from_preset("ops"), stats=("mean",))
    elements = ElementProperty.from_preset("magpie", impute_nan=False)

    def prints(crystal: Crystal):
        structure = to_pymatgen(crystal)
        return np.array(sites.featurize(structure)), np.array(
            elements.featurize(structure.composition)
        )

    left, right = [prints(c) for c in made], [prints(c) for c in real]
    magpie = np.array([m for _, m in right])
    spread = magpie.std(0)
    spread[spread < 1e-12] = 1

    def near(one, others):
        structure = min(np.linalg.norm(one[0] - o[0]) for o in others)
        elements = min(np.linalg.norm((one[1] - o[1]) / spread) for o in others)
        return structure <= 0.4 and elements <= 10

    result = coverage(made, real, cache_folder=tmp_path)
    assert result.recall == np.mean([near(r, left) for r in right])
    assert result.precision == np.mean([near(m, right) for m in left])
    assert 0 < result.recall < 1
    assert 0 < result.precision < 1
