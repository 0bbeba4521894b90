import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from prototypes import everything, rutile

from crystal_fidelity.features import FeatureSet, Identity, feature_set
from crystal_fidelity.frechet import frechet_distance
from crystal_fidelity.structures import as_entries
from crystal_fidelity.studies import (
    add_noise,
    distribution_plots,
    distributions,
    extrapolated,
    level_of,
    noise_curve,
    noise_plot,
    noised,
    size_plot,
    size_study,
)
from crystal_fidelity.validity import structural_validity

ID = Identity("toy", "0" * 64, "none")


def features(rows):
    return FeatureSet(rows, tuple(map(str, range(len(rows)))), ID)


class Toy:
    """Features that follow the cell; colliding structures have none."""

    identity = ID
    dimension = 2

    def features(self, structures):
        entries = as_entries(structures)
        rows = np.array(
            [[e.volume / len(e), np.abs(e.frac_coords).sum() / len(e)] for e in entries]
        )
        reasons = structural_validity(entries).reasons
        return feature_set(rows, [e.name for e in entries], reasons, ID)


def test_noise_has_the_stated_strength_and_none_at_level_zero():
    generator = np.random.default_rng(0)
    crystal = rutile()
    same = add_noise(crystal, 0.0, generator)
    np.testing.assert_allclose(same.lattice, crystal.lattice)
    np.testing.assert_allclose(same.frac_coords, crystal.frac_coords % 1)
    moves, strains = [], []
    for _ in range(400):
        other = add_noise(crystal, 0.2, generator, displacement=1.0, strain=0.05)
        delta = other.frac_coords - crystal.frac_coords
        moves.append((delta - np.round(delta)) @ crystal.lattice)
        strains.append(np.linalg.inv(crystal.lattice) @ other.lattice - np.eye(3))
    assert np.std(moves) == pytest.approx(0.2, rel=0.05)
    diagonal = np.array(strains)[:, [0, 1, 2], [0, 1, 2]]
    assert diagonal.std() == pytest.approx(0.01, rel=0.1)


def test_noise_curve_grows_and_counts_what_it_loses():
    crystals = everything() * 20
    sets = {t: noised(crystals, t, seed=1, displacement=1.0) for t in (0.0, 0.1, 0.5)}
    points = noise_curve(sets, crystals, Toy())
    assert [p.level for p in points] == [0.0, 0.1, 0.5]
    assert points[0].frechet == pytest.approx(0, abs=1e-9)
    assert points[0].frechet < points[1].frechet < points[2].frechet
    assert points[0].failed == 0
    assert points[2].failed > 0
    assert points[2].n + points[2].failed == 120
    assert len(noise_plot(points, "toy", "level")) == 2


def test_noise_that_leaves_no_structure_is_a_point_without_a_distance():
    crystals = everything()
    collapsed = [replace(c, lattice=c.lattice * 1e-3) for c in crystals]
    first, last = noise_curve({0.0: crystals, 1.0: collapsed}, crystals, Toy())
    assert first.frechet is not None
    assert (last.frechet, last.kernel, last.n, last.failed) == (None, None, 0, len(crystals))
    shown, lost = noise_plot([first, last], "toy", "level")
    assert markers(shown) == 1
    assert markers(lost) == 2


def markers(svg):
    """Points drawn inside the axes; ticks are outside of the clip path."""
    return sum(g.count("<use") for g in re.findall(r"<g clip-path[^>]*>(?:\s*<use[^>]*/>)+", svg))


def test_size_curve_falls_and_extrapolates_below_its_last_point():
    generator = np.random.default_rng(0)
    left, right = (features(generator.normal(size=(n, 6))) for n in (1000, 4000))
    points = size_study(left, right)
    assert [p.n for p in points] == [64, 128, 256, 512, 1000]
    assert all(a.mean > b.mean for a, b in pairwise(points))
    assert abs(extrapolated(points)) < points[-1].mean
    assert "structures" in size_plot({"a": points}, "toy")


def test_sizes_double_up_to_the_set_and_stay_within_it():
    few = features(np.random.default_rng(0).normal(size=(63, 2)))
    assert [p.n for p in size_study(few, few, repeats=1)] == [7, 14, 28, 56, 63]
    with pytest.raises(ValueError, match=r"give 2\.\.63"):
        size_study(few, few, [1, 5])


def test_size_curve_falls_towards_the_full_set():
    generator = np.random.default_rng(11)
    reference = features(generator.normal(size=(2000, 8)))
    curve = size_study(features(generator.normal(size=(1000, 8))), reference, [20, 100, 1000])
    assert curve[0].spread > curve[1].spread > 0
    assert np.isnan(curve[2].spread)  # the whole set has no spread of subsets
    assert curve[0].mean > curve[1].mean > curve[2].mean


def test_spread_of_subsets_is_that_of_fresh_samples():
    generator = np.random.default_rng(12)
    reference = features(generator.normal(size=(4000, 4)))
    n = 300
    fresh = [frechet_distance(generator.normal(size=(n, 4)), reference.features) for _ in range(60)]
    pools = [features(generator.normal(size=(400, 4))) for _ in range(12)]
    spreads = [
        size_study(p, reference, [n], repeats=20, seed=i)[0].spread for i, p in enumerate(pools)
    ]
    ratio = np.sqrt(np.mean(np.square(spreads))) / np.std(fresh, ddof=1)
    assert 0.6 < ratio < 1.6  # uncorrected: half


def test_level_is_the_last_number_of_the_name():
    assert level_of("mp20_noised_t0250") == 250
    assert level_of("a_0.5") == 0.5
    with pytest.raises(ValueError, match="level or step"):
        level_of("noised")


def test_distributions_hold_every_set():
    class Model:
        identity = ID

        def energies(self, structures):
            return np.arange(len(structures), dtype=float)

    plots = distribution_plots(
        distributions({"one": everything(), "two": everything()[:4]}, Model())
    )
    assert len(plots) == 2
    assert all("one (n = 6)" in svg and "two (n = 4)" in svg for svg in plots)
