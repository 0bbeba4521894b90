"""The page of results is what its JSON makes, and nothing on it was typed over."""

import json
import re
import shutil
from pathlib import Path

from crystorus.reproduction.publishing import render_page, write_page

DOCS = Path(__file__).parents[2] / "docs"
FIGURE_LIMIT = 150_000


def test_the_committed_page_is_what_its_results_make():
    assert (DOCS / "paper.md").read_text() == render_page(DOCS / "paper")


def test_another_number_would_make_another_page(tmp_path):
    shutil.copytree(DOCS / "paper", tmp_path / "paper")
    path = tmp_path / "paper" / "table4.json"
    report = json.loads(path.read_text())
    report["rows"][0]["mean"]["validity"] += 0.01
    path.write_text(json.dumps(report))
    assert render_page(tmp_path / "paper") != (DOCS / "paper.md").read_text()


def test_the_page_and_its_figures_are_written_from_the_results(tmp_path):
    drawn_elsewhere = ("figure1.png", "latent-map.png")  # they show crystals of the data set
    shutil.copytree(
        DOCS / "paper",
        tmp_path / "paper",
        ignore=lambda _, names: [n for n in names if n[-4:] == ".png" and n not in drawn_elsewhere],
    )
    assert write_page(tmp_path).read_text() == (DOCS / "paper.md").read_text()
    shown = set(re.findall(r"\(paper/([\w-]+\.png)\)", (DOCS / "paper.md").read_text()))
    drawn = {path.name for path in (tmp_path / "paper").glob("*.png")}
    assert shown == drawn
    assert shown == {path.name for path in (DOCS / "paper").glob("*.png")}
    assert all((DOCS / "paper" / name).stat().st_size < FIGURE_LIMIT for name in shown)


def test_a_result_that_is_gone_is_said_to_be_missing(tmp_path):
    shutil.copytree(DOCS / "paper", tmp_path / "paper")
    (tmp_path / "paper" / "table4.json").unlink()
    text = render_page(tmp_path / "paper")
    assert "*not measured yet: `crystorus paper table4`*" in text
    assert text.count("not measured yet: `crystorus paper table4`") > 5


def test_results_hold_what_made_them_and_no_path_of_a_machine():
    for path in sorted((DOCS / "paper").glob("*.json")):
        text = path.read_text()
        report = json.loads(text)
        assert {"budget", "seeds", "inputs", "provenance"} <= set(report), path
        assert re.match(r"[0-9a-f]{40}", report["provenance"]["commit"]), path
        assert len(report["inputs"]["train"]["sha256"]) == 64, path
        assert not re.search(r'"/\w', text), path


def test_nothing_of_the_data_set_is_published():
    for name, row in (("figure1", "gallery"), ("latent", "map")):
        path = DOCS / "paper" / f"{name}.json"
        report = json.loads(path.read_text()) if path.exists() else {}
        shown = report.get(row, {}).get("names", [])
        assert shown in ([], ["generated"])
        assert "energy_ev_per_atom" not in json.dumps(report)
