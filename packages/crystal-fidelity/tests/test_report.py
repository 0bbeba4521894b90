import json
import re
import xml.dom.minidom
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from prototypes import everything, rattled, simple_cubic

from crystal_fidelity.compare import compare, split_candidates
from crystal_fidelity.options import METRICS, Settings, parse_metrics
from crystal_fidelity.plots import Curve, bars, binned, curves, histogram
from crystal_fidelity.report import (
    FIELDS,
    print_scores,
    shown,
    structure_rows,
    write_json,
    write_plots,
    write_report,
)
from crystal_fidelity.scores import Score, rate_score
from crystal_fidelity.structures import Crystal, ReadFailure

LABELS = {"title": "t", "x_label": "x", "y_label": "y"}
SETTINGS = Settings(
    metrics=("validity", "density", "match", "uniqueness", "novelty", "spacegroups")
)


@pytest.fixture(scope="module")
def result():
    truth = everything()
    made = [rattled(c, 0.05, i) for i, c in enumerate(truth)]
    crystal = made[1]
    hostile = "</script><script>alert(1)</script><!-- {{ROWS}} & <b>"
    made[1] = Crystal(crystal.lattice, crystal.frac_coords, crystal.atomic_numbers, hostile)
    made[2] = simple_cubic(0.48)
    made[3] = ReadFailure("torn", "no atoms")
    return made, compare(made, truth, SETTINGS)


def test_compare_gives_every_result_its_row_in_order(result):
    made, comparison = result
    rows = structure_rows(made, comparison)
    records = [dict(zip(FIELDS, row, strict=True)) for row in rows]
    assert [r["name"] for r in records] == [entry.name for entry in made]
    assert [r["valid"] for r in records] == [True, True, False, False, True, True]
    assert records[5]["formula"] == "TiO2"
    assert records[3]["remark"] == "unreadable: no atoms"
    assert [r["match"] for r in records].count("matched") == 4
    assert records[4]["volume_per_atom"] == pytest.approx(made[4].volume / len(made[4]), abs=1e-4)


def outside(page):
    """Addresses that the page loads; 3Dmol's program holds some that it is never asked for."""
    page = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    found = re.findall(r"(?:src|href)\s*=\s*['\"]?([^'\" >]+)", page)
    found += re.findall(r"url\(([^)]*)\)", page)
    return [link for link in found if not link.startswith(("#", "data:,"))]


def test_report_stands_alone_and_hostile_names_stay_text(result, tmp_path):
    made, comparison = result
    path = tmp_path / "report.html"
    write_report(path, "a <b> & c", made, comparison)
    page = path.read_text(encoding="utf-8")
    assert outside(page) == []
    assert "alert(1)</script>" not in page
    assert "{{ title }}" not in page
    assert page.count("a &lt;b&gt; &amp; c") == 2

    class Rows(HTMLParser):
        inside, text, scripts = False, "", 0

        def handle_starttag(self, tag, attributes):
            self.scripts += tag == "script"
            self.inside = ("id", "data") in attributes

        def handle_data(self, data):
            if self.inside:
                self.text += data

        def handle_endtag(self, tag):
            self.inside = False

    parser = Rows()
    parser.feed(page)
    assert parser.scripts == 4  # the data, 3Dmol, what reports share, this report
    data = json.loads(parser.text)
    assert data["rows"][1][1] == made[1].name
    assert data["cells"][3] is None  # unreadable
    for cell, entry in zip(data["cells"], made, strict=True):
        if cell is not None:
            positions = np.array(cell["frac"]) @ np.array(cell["cell"])
            np.testing.assert_allclose(positions, entry.frac_coords % 1 @ entry.lattice, atol=1e-3)
            assert set(cell["symbols"]) <= set(data["elements"])
    assert all(symbol for symbol in data["groups"].values())


def test_a_page_of_plots_stands_alone(tmp_path):
    write_plots(tmp_path / "p.html", "a <b>", [curves([Curve("a", [1, 2], [3, 4])], **LABELS)] * 2)
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert page.count("<svg") == page.count("</svg>") == 2
    assert "a &lt;b&gt;" in page
    assert outside(page) == []
    assert "width=device-width" in page


def test_what_was_not_computed_is_in_the_report(result, tmp_path):
    made, comparison = result
    missing = replace(comparison, not_computed={"sun": "no <energies>"})
    write_report(tmp_path / "r.html", "x", made, missing)
    assert "Not computed: sun: no &lt;energies&gt;" in (tmp_path / "r.html").read_text("utf-8")
    assert "Not computed" not in _page(made, replace(comparison, not_computed={}), tmp_path)


def _page(made, comparison, folder):
    write_report(folder / "plain.html", "x", made, comparison)
    return (folder / "plain.html").read_text("utf-8")


def test_histograms_have_the_area_one_and_hold_all_values():
    values = np.random.default_rng(0).normal(size=5000)
    edges, (heights,) = binned([values], limit=6.0)
    assert np.sum(heights * np.diff(edges)) == pytest.approx(1)
    assert edges[-1] == 6.0
    assert abs(edges[np.argmax(heights)]) < 0.7
    svg = histogram([("a<b", values)], title="t & u", x_label="x", limit=0.5)
    text = xml.dom.minidom.parseString(svg).toxml()
    assert "a&lt;b (n = 5000)" in text


def test_plots_are_vectors_that_come_out_the_same_every_time():
    plots = [curves([Curve("a", [1, 2], [3, 4], [1, None])], **LABELS, log_y=True) for _ in "ab"]
    assert plots[0] == plots[1]
    assert "<image" not in plots[0]
    assert not re.search(r"20\d\d-\d\d-\d\d", plots[0])


def test_plots_survive_empty_constant_and_infinite_values():
    for svg in (
        histogram([("x", np.array([np.nan, np.inf]))], title="", x_label=""),
        histogram([("x", np.array([1.0, 1.0])), ("y", np.array([]))], title="", x_label=""),
        curves([Curve("a", [1], [0.0])], title="", x_label="", y_label="", log_y=True),
        curves([Curve("a", [1, 2], [3, 3], [1, 1])], title="", x_label="", y_label=""),
        bars([], [("a", [])], "none"),
    ):
        xml.dom.minidom.parseString(svg)


def test_json_has_no_nan(tmp_path):
    write_json(
        tmp_path / "x.json", {"a": [float("nan"), np.float64(1.5), np.int64(2)], "b": (True,)}
    )
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5, 2], "b": [True]}


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (Score("a", 0.9928, uncertainty=0.00089, rate=True), ("99.280", "0.089", "", "%")),
        (Score("a", 1.0, uncertainty=0.25, real=0.5, rate=True), ("100", "-50", "50", "%")),
        (rate_score("a", 0.0, 9, "p"), ("0.0", "+10.0", "", "%")),  # Wilson: 0 to 1/(n + 1)
        (Score("a", 0.01, uncertainty=0.0019, real=0.009), ("0.0100", "0.0019", "0.0090", "")),
        (Score("a", 8e-6, uncertainty=7e-6, unit="x"), ("8e-06", "7e-06", "", "x")),
        (Score("a", 0.25, real=float("nan")), ("0.25", "", "none", "")),
    ],
)
def test_numbers_are_shown_to_the_digits_of_their_error(score, expected):
    assert shown(score) == expected


def test_metric_names_are_checked():
    assert parse_metrics("density, validity") == ("validity", "density")
    assert parse_metrics("all") == METRICS
    for text in ("", "fidelity"):
        with pytest.raises(ValueError, match="choose from"):
            parse_metrics(text)


def test_candidates_are_consecutive():
    assert split_candidates([1, 2, 3, 4, 5, 6], 3, 2) == [[1, 3, 5], [2, 4, 6]]
    for count, k in ((3, 0), (4, 2)):
        with pytest.raises(ValueError, match="best-of"):
            split_candidates([1, 2, 3, 4, 5, 6], count, k)


def test_published_figures_stand_beside_ours_by_protocol_best_first():
    from rich.console import Console

    from crystal_fidelity.report import published_figures, published_table

    figures = published_figures()
    assert all(row["source"] and row["data"] and float(row["value"]) > 0 for row in figures)
    printed = {row["system"] for row in figures if "printed in" in row["source"]}
    assert {"CDVAE", "FTCP*", "PGCGM", "G-SchNet", "P-G-SchNet"} <= printed
    scores = [
        Score("match rate, valid", 0.65, n_generated=9, n_reference=9, rate=True, better="higher"),
        Score("match RMSE, valid", 0.03, n_generated=6, n_reference=9, better="lower"),
        Score("nobody's metric", 1.0),
    ]
    console = Console(width=160, record=True)
    console.print(published_table(scores, "ours.extxyz"))
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    text = [" ".join(line) for line in lines]
    rates = text[2 : next(i for i, line in enumerate(text) if line.startswith("match RMSE"))]
    place = next(i for i, line in enumerate(rates) if "ours.extxyz 65 9 as given" in line)
    assert "Uni-3DAR 65.48" in rates[place - 1]
    assert "OMatG 63.75" in rates[place + 2]  # after MCFlow, 64.08
    assert not any("73.79" in line for line in rates)  # of the other protocol
    rest = text[2 + len(rates) :]
    assert [next(w for w in line.split() if w.startswith("0.0")) for line in rest[:3]] == [
        "0.0272", "0.03", "0.0317"
    ]  # fmt: skip
    assert "nobody" not in console.export_text()


def test_small_sets_say_what_they_lack(capsys):
    """One crystal against one: no distance has an error, no rate an error in both directions."""
    one, other = everything()[:2]
    print_scores(compare([one], [other], Settings(metrics=("validity", "density"))).scores)
    shown = " ".join(capsys.readouterr().out.split())
    assert "the reference is too small to be parted" in shown
    assert "n = 0" not in shown
    assert "off in one direction only" in shown
    assert "distances have errors from 8 generated structures on" in shown
