"""Figures 3 and 4: what has no distance is not drawn as one, and words follow from numbers."""

import pytest

from crystorus.reproduction import markdown
from crystorus.reproduction.plots import draw_noise, draw_size
from crystorus.reproduction.verdicts import of_noise, of_size

ABOUT = {
    "budget": {"name": "smoke", "about": "nothing"},
    "seeds": [0],
    "inputs": {"compositions": 3},
    "provenance": {
        "hardware": "a machine",
        "programs": {"torch": "2"},
        "commit": "0123456789abcdef",
        "date": "2026-01-01T00:00:00",
    },
}


def point(share, frechet, n, failed):
    error = None if frechet is None else 0.1
    return {"share": share, "frechet": frechet, "error": error, "n": n, "failed": failed}


@pytest.fixture
def noise():
    collapsing = [point(0.0, 0.1, 8, 0), point(0.5, 2.0, 4, 4), point(1.0, None, 1, 7)]
    mild = [point(0.0, 0.1, 8, 0), point(0.5, 1.0, 8, 0), point(1.0, 3.0, 6, 2)]
    return ABOUT | {"curves": {"default": {"points": mild}, "paper": {"points": collapsing}}}


def test_noise_that_leaves_no_crystals_has_a_share_and_no_distance(noise):
    distance, lost = draw_noise(noise).axes
    drawn = [list(line.get_xdata()) for line in distance.lines]
    assert [0.0, 0.5] in drawn
    assert [0.0, 0.5, 1.0] in drawn
    assert [0.0, 0.5, 0.875] in [list(line.get_ydata()) for line in lost.lines]
    assert "| 1 | 3.00 (2 without) | – (7 without) |" in markdown.noise_points(noise)


def test_the_axis_of_sizes_names_every_size():
    points = [{"n": n, "mean": 1 / n, "spread": 0.01 / n} for n in (64, 128, 1000)]
    report = ABOUT | {"points": points, "limit": 0.001}
    (axes,) = draw_size(report).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["64", "128", "1000"]
    assert "| 1000 | 0.00100 | 1.00e-05 |" in markdown.size_points(report)
    assert (
        of_size(report) == "real against real: 0.00100 at 1000 crystals, 0.00100 beyond all sizes"
    )


def test_words_on_noise_follow_from_the_numbers(noise):
    mild, collapsing = of_noise(noise).split("; `")
    assert "0.100 at t = 0, rises at every step, to 3.00 at 1 T" in mild
    assert "to 2.00 at 0.5 T; at T 88 % of the crystals have no features" in collapsing
    noise["curves"]["default"]["points"][1]["frechet"] = 4.0
    assert "rises but for t = 1 T, to 3.00" in of_noise(noise)
