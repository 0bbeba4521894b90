import numpy as np
import pytest
from prototypes import diamond, everything, random_crystal, rock_salt, simple_cubic

from crystal_fidelity.distances import (
    cdvae_sample,
    densities,
    density_emd,
    earth_movers_distance,
    energy_emd,
)
from crystal_fidelity.structures import Crystal, ReadFailure


def by_definition(a, b):
    """W1 = the integral of |F - G| over the real line."""
    grid = np.sort(np.concatenate([a, b]))
    cdf_a = np.searchsorted(np.sort(a), grid[:-1], side="right") / len(a)
    cdf_b = np.searchsorted(np.sort(b), grid[:-1], side="right") / len(b)
    return np.sum(np.abs(cdf_a - cdf_b) * np.diff(grid))


def test_emd_is_the_area_between_the_distribution_functions():
    generator = np.random.default_rng(0)
    a, b = generator.normal(0, 1, 300), generator.normal(0.7, 1.5, 211)
    result = earth_movers_distance(a, b, name="x", unit="")
    assert result.value == pytest.approx(by_definition(a, b), rel=1e-12)


def test_emd_of_a_shift_is_the_shift():
    values = np.random.default_rng(1).normal(size=500)
    assert earth_movers_distance(values + 0.3, values, name="x", unit="").value == pytest.approx(
        0.3
    )


def test_density_emd_is_the_definition_on_densities():
    left = [random_crystal(i) for i in range(40)]
    right = [random_crystal(i) for i in range(100, 150)]
    result = density_emd(left, right)
    assert result.value == pytest.approx(by_definition(densities(left), densities(right)))
    assert result.value > 0
    assert density_emd(left, left[::-1]).value == pytest.approx(0, abs=1e-12)


def test_density_of_rock_salt_is_the_tabulated_one():
    assert densities([rock_salt(5.6402)])[0] == pytest.approx(2.165, abs=0.005)
    assert densities([diamond(3.567)])[0] == pytest.approx(3.515, abs=0.005)


def test_values_that_are_not_finite_are_left_out_and_counted():
    flat = Crystal(np.diag([3.0, 3.0, 0.0]), np.zeros((1, 3)), np.array([11]))
    result = density_emd([rock_salt(), flat, ReadFailure("x", "torn")], [rock_salt()])
    assert result.excluded == 2
    assert len(result.generated) == 1
    assert result.value == pytest.approx(0)
    with pytest.raises(ValueError, match="0 generated and 1 reference"):
        density_emd([flat], [rock_salt()])


def test_floor_shrinks_with_n_and_is_what_disjoint_halves_give():
    generator = np.random.default_rng(2)
    reference = generator.normal(size=4000)
    small = earth_movers_distance(reference[:50], reference, name="x", unit="")
    large = earth_movers_distance(reference[:2000], reference, name="x", unit="")
    assert small.floor_n == 50
    assert large.floor < small.floor / 2
    assert np.isnan(earth_movers_distance(reference, reference[:1], name="x", unit="").floor)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_error_is_the_spread_of_repeats(shift):
    generator = np.random.default_rng(3)
    reference = generator.normal(size=2000)
    runs = [
        earth_movers_distance(generator.normal(size=200) + shift, reference, name="x", unit="")
        for _ in range(40)
    ]
    spread = np.std([r.value for r in runs], ddof=1)
    errors = np.sqrt(np.mean([r.uncertainty**2 for r in runs]))
    assert 0.7 < errors / spread < 1.6
    assert earth_movers_distance(np.ones(7), reference, name="x", unit="").uncertainty is None


def test_cdvae_protocol_takes_a_thousand_valid_samples():
    valid = np.arange(3000) % 2 == 0
    chosen = cdvae_sample(valid, seed=0)
    assert len(set(chosen.tolist())) == 1000
    assert valid[chosen].all()
    pytest.importorskip("smact")
    unbalanced = rock_salt(5.0, "Ne", "Na")  # CDVAE's valid asks for charge balance too
    result = density_emd(
        [simple_cubic(0.4), unbalanced, rock_salt()], [rock_salt()], protocol="cdvae"
    )
    assert len(result.generated) == 1
    assert "1 random valid" in result.protocol


def test_energy_emd_reads_the_named_property():
    def with_energy(values):
        return [
            Crystal(c.lattice, c.frac_coords, c.atomic_numbers, c.name, properties={"e": v})
            for c, v in zip(everything(), values, strict=False)
        ]

    left, right = with_energy([0.0, 1.0, 2.0]), with_energy([1.0, 2.0, 3.0])
    assert energy_emd(left, right, key="e").value == pytest.approx(1.0)
    with pytest.raises(KeyError, match="what they carry: e"):
        energy_emd(left, right, key="energy")


@pytest.mark.parametrize(("key", "distance"), [
    ("energy", 0.0), ("total_energy", 0.0), ("REF_energy", 0.0), ("energy_per_atom", 7.0),
    ("formation_energy", 7.0), ("energy_above_hull", 7.0),
])  # fmt: skip
def test_totals_are_divided_by_the_atoms(key, distance):
    def cells(n):
        numbers = np.full(n, 29)
        crystal = Crystal(np.eye(3) * 4, np.zeros((n, 3)), numbers, properties={key: -1.0 * n})
        return [crystal, crystal]

    result = energy_emd(cells(8), cells(1), key=key)
    assert result.value == pytest.approx(distance)
    assert ("divided by the atoms" in result.protocol) == (distance == 0)
