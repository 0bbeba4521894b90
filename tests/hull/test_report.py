import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from ase.build import bulk
from explained import columns_explained
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from pymatgen.core import Composition, Element

from crystorus.errors import CampaignError
from crystorus.hull.matching import Novelty
from crystorus.hull.rank import Hull, Phase, RankedPhase, Ranking
from crystorus.hull.report import (
    draw_hull,
    energy_range,
    label_stable,
    place,
    write_report,
)


def ranking(elements):
    """Known elements, and a candidate of everything at once."""
    known = [Phase(s, Composition(s), -1.0) for s in elements]
    hull = Hull(known, elements)
    atoms = bulk(elements[0]).repeat((len(elements), 1, 1))
    atoms.set_chemical_symbols(list(elements))
    phase = RankedPhase(
        "00000-x", 1, "x", atoms, "relaxed", energy_per_atom=-1.2, formation_energy=-0.2,
        e_above_hull=-0.2, e_above_full_hull=0.0, volume_change=0.01, space_group=("P1", 1),
        novelty=Novelty("not in the references"),
    )  # fmt: skip
    failed = RankedPhase("00001-</script><b>", 2, "y", atoms, "runaway", "it & ran <away>")
    own = Phase("00000-x", Composition(atoms.get_chemical_formula()), -1.2)
    full = Hull([*known, own], elements)
    return Ranking((phase, failed), hull, full, {}, {elements[0]: bulk(elements[0])}, {"made": 2})


class Loads(HTMLParser):
    """Every attribute that makes a browser fetch something, and the text of scripts."""

    def __init__(self):
        super().__init__()
        self.fetched, self.scripts, self.inside = [], [], None

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.fetched += [v for k, v in attributes.items() if k in ("src", "href", "srcset")]
        self.inside = attributes.get("id") or tag if tag == "script" else None

    def handle_data(self, data):
        if self.inside:
            self.scripts.append((self.inside, data))

    def handle_endtag(self, tag):
        self.inside = None


def test_the_report_loads_nothing_and_its_data_survive_html(tmp_path):
    write_report(tmp_path, ranking(["Cu", "Au"]), settings={"a": "</script>"}, versions={})
    text = (tmp_path / "report.html").read_text()
    page = Loads()
    page.feed(text)
    assert page.fetched == ["data:,"]
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))
    data = json.loads(dict(page.scripts)["data"])
    assert data["settings"]["a"] == "</script>"
    assert data["rows"][1]["name"] == "00001-</script><b>"
    assert data["rows"][1]["e_above_hull"] is None
    assert data["rows"][0]["parts"] == {"Cu": 0.5, "Au": 0.5}
    structure = data["structures"]["00000-x"]
    rebuilt = np.array(structure["frac"]) @ np.array(structure["cell"])
    assert rebuilt.shape == (2, 3)
    assert {s["name"] for s in data["known"]} == {"Cu", "Au"}


def test_a_film_of_a_candidate_without_trajectory_is_refused(tmp_path):
    with pytest.raises(CampaignError, match="holds no trajectory of it"):
        write_report(tmp_path, ranking(["Cu", "Au"]), settings={}, versions={},
                     animate=["00000-x"])  # fmt: skip


@pytest.mark.parametrize("elements", [["Cu", "Au"], ["Cu", "Au", "Ag"], ["Cu", "Au", "Ag", "Ni"],
                                      ["Cu", "Au", "Ag", "Ni", "Pd"]])  # fmt: skip
def test_plots_are_drawn_alike_every_time_without_a_display(monkeypatch, elements):
    monkeypatch.delenv("DISPLAY", raising=False)
    one = ranking(elements)
    drawn = draw_hull(one.hull, one.full_hull, one.phases)
    pixels = np.asarray(Image.open(io.BytesIO(drawn["png"])).convert("L"))
    assert 0.002 < (pixels < 128).mean() < 0.5
    svg = drawn["svg"].decode()
    assert svg.count("<path") > 5
    assert 'xlink:href="#00000-x"' in svg  # by which the page finds the candidate
    again = ranking(elements)
    assert draw_hull(again.hull, again.full_hull, again.phases) == drawn
    # The candidate lies below the hull: what joins it to the elements is dashed.
    without = draw_hull(one.hull, one.hull, one.phases[1:])["svg"].decode()
    dashed = [text.count("stroke-dasharray") for text in (svg, without)]
    lines = len(elements) if len(elements) < 5 else 0
    assert dashed == [lines + bool(lines), 0]  # and one in the legend


def test_the_triangle_puts_pure_phases_in_corners_and_averages_between():
    system = ["Li", "Fe", "O"]
    corners = {s: np.array(place(Composition(s), system)) for s in system}
    assert np.linalg.norm(corners["Li"] - corners["Fe"]) == pytest.approx(1.0)
    assert np.linalg.norm(corners["Li"] - corners["O"]) == pytest.approx(1.0)
    parts = Composition("LiFeO2")
    expected = sum(parts.get_atomic_fraction(Element(s)) * corners[s] for s in system)
    assert place(parts, system) == pytest.approx(tuple(expected))
    assert place(parts, system) != pytest.approx(place(Composition("Li2FeO2"), system))


def test_labels_lie_on_no_other_and_on_no_marker():
    figure = Figure(figsize=(5, 5))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    random = np.random.default_rng(0)
    names = [f"Fe{n}O{m}" for n in range(1, 6) for m in range(6, 12)]
    elements = [Phase(s, Composition(s), 0.0) for s in ("Fe", "O")]
    hull = Hull([*elements, *(Phase(n, Composition(n), -9.0) for n in names)], ["Fe", "O"])
    spots = {name: tuple(random.random(2)) for name in hull.stable}
    axes.scatter(*zip(*spots.values(), strict=True), label="known")
    axes.legend()
    label_stable(axes, hull, hull, spots, [])
    boxes = [text.get_window_extent() for text in axes.texts]
    assert 2 < len(boxes) <= len(spots)
    markers = axes.transData.transform(list(spots.values()))
    for n, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:n])
        assert not any(box.contains(*marker) for marker in markers)


def test_a_label_without_room_is_left_out():
    figure = Figure(figsize=(5, 5))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    hull = Hull([Phase(s, Composition(s), 0.0) for s in ("Fe", "O")], ["Fe", "O"])
    around = {f"m{x}{y}": (0.5 + 0.04 * x, 0.5 + 0.04 * y)
              for x in range(-4, 5) for y in range(-4, 5)}  # fmt: skip
    axes.scatter([0, 1], [0, 1], label="known")
    axes.legend(loc="upper left")
    label_stable(axes, hull, hull, around | {"Fe": (0.5, 0.5), "O": (0.9, 0.1)}, [])
    assert [text.get_text() for text in axes.texts] == ["O"]


def test_the_axis_of_energies_fits_what_it_shows():
    """Alloys of some meV are not a line at the foot of an empty picture; what is far is cut."""
    low, high = energy_range([0.0, -0.01, 0.007])
    assert low < -0.01
    assert 0.007 < high < 0.06
    low, high = energy_range([0.0, -3.0, 0.3, 9.0])
    assert low < -3.0
    assert 0.3 < high < 1.0


def test_every_column_of_the_table_is_explained():
    assert columns_explained("hull") == ["rank", *ranking(["Cu", "Au"]).phases[0].record]
