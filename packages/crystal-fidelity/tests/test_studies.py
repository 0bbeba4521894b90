import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from prototypes import everything, rutile

from crystal_fidelity.features import FeatureSet, Identity, feature_set
from crystal_fidelity.structures import as_entries
from crystal_fidelity.studies import (
    add_noise,
    default_sizes,
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

    def features(n):
        rows = generator.normal(size=(n, 6))
        return FeatureSet(rows, tuple(map(str, range(n))), ID)

    points = size_study(features(1000), features(4000))
    assert [p.n for p in points] == [64, 128, 256, 512, 1000]
    assert all(a.mean > b.mean for a, b in pairwise(points))
    assert abs(extrapolated(points)) < points[-1].mean
    assert "structures" in size_plot({"a": points}, "toy")


def test_sizes_double_up_to_the_set():
    assert default_sizes(300) == [64, 128, 256, 300]
    assert default_sizes(63) == [7, 14, 28, 56, 63]


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
