"""The page is what the results' JSON makes; tables, effects and words against arithmetic here."""

import copy
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from reproduction import ReproductionError
from reproduction.figures import draw_latent_map, draw_lattice_systems, draw_noise, draw_probe
from reproduction.page import (
    effect,
    merge_with_published,
    number,
    parts,
    probe_verdict,
    publish,
    render_page,
    text_of,
    value,
    write_page,
)
from reproduction.results import summary
from reproduction.settings import PRINTED
from reproduction.symmetry import shares

DOCS = Path(__file__).parents[2] / "docs"
FIGURE_LIMIT = 150_000
ABOUT = {
    "budget": {"name": "smoke", "about": "nothing"},
    "seeds": [0, 1],
    "inputs": {"compositions": 3, "train": {"sha256": "1" * 64}},
    "provenance": {
        "hardware": "a machine",
        "programs": {"torch": "2"},
        "commit": "0123456789abcdef",
        "date": "2026-01-01T00:00:00",
    },
}


def run(seed, **values):
    scores = {k: {"value": v, "uncertainty": 0.1, "real": None} for k, v in values.items()}
    return {"seed": seed, "scores": scores}


def row(name, *runs, printed=None):
    about = {"name": name, "label": name, "preset": name.split("-")[0], "printed": printed}
    return about | {"runs": list(runs)} | summary(runs)


def table(rows, commit="0", experiment="table4", **more):
    made = ABOUT["provenance"] | {"commit": commit * 10}
    about = {"experiment": experiment, "printed": PRINTED, "rows": rows}
    return ABOUT | {"provenance": made} | about | more


def of_validities(commit, **values):
    rows = [
        row(k.replace("_", "-"), run(0, validity=v), run(1, validity=v + 0.02))
        for k, v in values.items()
    ]
    return table(rows, commit)


@pytest.fixture
def report():
    def two(name, first, second, printed=None):
        pairs = enumerate(zip(first, second, strict=True))
        runs = [run(i, validity=v, density_emd=d) for i, (v, d) in pairs]
        return row(name, *runs, printed=printed)

    return table(
        [
            two("paper", (0.90, 0.92), (0.30, 0.34), 0),
            two("paper-a", (0.20, 0.22), (0.31, 0.33), 1),
            two("paper-d", (0.99, 0.99), (9.0, 9.1), 4),
            two("default", (0.95, 0.96), (0.1, 0.1)),
        ]
    )


@pytest.fixture
def first():
    return of_validities(
        "a", paper=0.9, paper_a=0.2, default=0.8, default_old=0.7, default_both=0.1
    )


@pytest.fixture
def second():
    return of_validities("b", default=0.6, default_new=0.5, default_both=0.6)


def test_the_committed_page_is_what_its_results_make(tmp_path):
    page = (DOCS / "paper.md").read_text()
    assert page == render_page(DOCS / "paper")
    shutil.copytree(DOCS / "paper", tmp_path / "paper")
    path = tmp_path / "paper" / "table4.json"
    changed = json.loads(path.read_text())
    changed["rows"][0]["mean"]["validity"] += 0.01
    path.write_text(json.dumps(changed))
    assert render_page(tmp_path / "paper") != page
    path.unlink()
    missing = "*not measured yet: `python -m reproduction table4`*"
    assert render_page(tmp_path / "paper").count(missing) > 5
    path.write_text(json.dumps({"experiment": "table9"}))
    with pytest.raises(ReproductionError, match="is not a result"):
        render_page(tmp_path / "paper")


def test_figures_are_drawn_from_the_results_and_the_withheld_ones_stay(tmp_path):
    withheld = ("figure1.png", "latent-map.png")  # they show crystals of the data set
    shutil.copytree(
        DOCS / "paper",
        tmp_path / "paper",
        ignore=lambda _, names: [n for n in names if n[-4:] == ".png" and n not in withheld],
    )
    assert write_page(tmp_path).read_text() == (DOCS / "paper.md").read_text()
    shown = set(re.findall(r"\(paper/([\w-]+\.png)\)", (DOCS / "paper.md").read_text()))
    drawn = {path.name: path for path in (tmp_path / "paper").glob("*.png")}
    assert shown == set(drawn) == {path.name for path in (DOCS / "paper").glob("*.png")}
    assert all((DOCS / "paper" / name).stat().st_size < FIGURE_LIMIT for name in shown)
    for name in withheld:
        assert drawn[name].read_bytes() == (DOCS / "paper" / name).read_bytes()
    with pytest.raises(ReproductionError, match="holds no results"):
        write_page(tmp_path / "nowhere")


def test_results_hold_what_made_them_and_nothing_of_the_data_set_or_the_machine():
    for path in sorted((DOCS / "paper").glob("*.json")):
        text = path.read_text()
        found = json.loads(text)
        assert re.match(r"[0-9a-f]{40}", found["provenance"]["commit"]), path
        assert len(found["inputs"]["train"]["sha256"]) == 64, path
        assert not re.search(r'"/\w', text), path
        assert "energy_ev_per_atom" not in text
        assert found.get("gallery", {}).get("names", []) in ([], ["generated"])


def test_rows_measured_again_replace_the_published_ones_and_no_others(first, second):
    def names(merged):
        return [[row["name"] for row in part["rows"]] for part in parts(merged)]

    both = merge_with_published(second, first)
    newest = ["default", "default-new", "default-both"]
    assert names(both) == [["paper", "paper-a", "default", "default-old"], newest]
    # A preset is kept as long as rows are compared with it.
    last = of_validities("c", default=0.6, default_old=0.7)
    assert names(merge_with_published(last, both)) == [
        ["paper", "paper-a"], newest, ["default", "default-old"]
    ]  # fmt: skip
    assert merge_with_published(first, both) != first  # default-new was not measured again
    whole = first | {"rows": [*first["rows"], *second["rows"][1:2]]}
    assert merge_with_published(whole, both) == whole
    for key, match in (
        ("inputs", "rows paper, paper-a, .* have other inputs"),
        ("budget", "other"),
    ):
        with pytest.raises(ReproductionError, match=f"paper, paper-a, .* have other {key}"):
            merge_with_published(second | {key: {}}, first)


def test_effects_are_taken_within_one_measurement_whose_commit_is_told(first, second):
    both = merge_with_published(second, first)
    assert effect(both, "default-old", "validity").startswith("worse, -10 ±")
    assert effect(both, "default-new", "validity").startswith("worse, -10 ±")
    mixed = copy.deepcopy(second)  # across measurements the same numbers say something else
    mixed["rows"][0] = first["rows"][2]
    assert effect(mixed, "default-new", "validity").startswith("worse, -30 ±")
    assert value(both, "default", "validity") == value(second, "default", "validity")
    for name in ("default-never", "paper-e"):
        assert effect(both, name, "validity") == value(both, name, "validity") == "not measured"
    old, new = text_of(both).split("*Budget")[1:]
    assert "commit aaaaaaaaaa" in old
    assert "commit bbbbbbbbbb" in new
    assert ("default-old" in old, "default-new" in old, "default-new" in new) == (True, False, True)
    assert text_of(both, "effects").count("\n") == 1 + 4


def test_publishing_the_checkpoints_row_keeps_the_trainings(tmp_path):
    out, docs = tmp_path / "out", tmp_path / "docs"
    out.mkdir()
    for commit, rows in (
        ("a", [row("paper", run(0, validity=0.9)), row("checkpoint", run(0, validity=0.5))]),
        ("b", [row("checkpoint", run(0, validity=0.97))]),
    ):
        (out / "table2.json").write_text(json.dumps(table(rows, commit, "table2")))
        publish(out, docs)
    text = (docs / "paper.md").read_text()
    assert "| checkpoint | measured | 97.0 ± 10 |" in text
    assert "50.0" not in text.partition("## Table 4")[0]
    assert "paper: *Budget" in text
    assert "checkpoint: *Budget" in text
    again = (docs / "paper" / "table2.json").read_text()
    publish(out, docs)
    assert (docs / "paper" / "table2.json").read_text() == again


def test_mean_and_deviation_are_numpys_and_need_every_run():
    values = [0.1, 0.4, 0.45]
    found = summary([run(i, validity=v) for i, v in enumerate(values)])
    assert found["mean"]["validity"] == pytest.approx(np.mean(values))
    assert found["deviation"]["validity"] == pytest.approx(np.std(values, ddof=1))
    runs = [run(0, validity=0.1, match_rmse=0.2), run(1, validity=0.1)]
    assert summary(runs)["mean"] == {"validity": pytest.approx(0.1)}
    assert summary(runs[:1])["deviation"] == {}
    for lost in (None, float("inf")):
        assert summary([*runs, run(2, validity=lost)])["mean"] == {}


def test_an_effect_has_a_direction_beyond_the_noise_beside_the_papers(report):
    assert effect(report, "paper-a", "validity") == "worse, -70 ± 1.4 (paper: worse)"
    assert effect(report, "paper-d", "validity").startswith("better, +8 ")
    assert effect(report, "paper-d", "validity").endswith("(paper: better)")
    assert effect(report, "paper-d", "density_emd").startswith("worse, +8.73 ")
    assert effect(report, "paper-a", "density_emd").startswith("none, +0 ")
    assert text_of(report, "changes", "paper").splitlines() == [
        "- paper-a: worse by validity",
        "- paper-d: worse by density EMD; better by validity",
    ]
    assert text_of(report, "changes", "default") == ""
    # Two seeds that agree by chance have no deviation of their own; the others' is taken.
    for one in report["rows"][1]["runs"]:
        one["scores"]["density_emd"]["value"] = 0.33
    report["rows"][1].update(summary(report["rows"][1]["runs"]))
    assert effect(report, "paper-a", "density_emd").startswith("none, +0.01 ")
    for one in report["rows"]:  # one training shows no effect
        one["runs"] = one["runs"][:1]
        one.update(summary(one["runs"]))
    assert effect(report, "paper-a", "validity").startswith("none, -70 ")


def test_the_table_shows_printed_and_measured_rows_and_what_diverged(report):
    before = copy.deepcopy(report)
    text = text_of(report)
    assert report == before
    assert "| paper-a | printed | 15.23 | 223.327 |" in text
    assert "| paper-a | measured | 21.0 ± 1.4 | 0.320 ± 0.014 |" in text
    assert "Budget `smoke`" in text
    assert "seeds 0, 1" in text
    assert "(e)" not in text
    report["rows"][1]["runs"][0] = {"seed": 0, "diverged": "step 3 has a loss", "scores": {}}
    report["rows"][1].update(summary(report["rows"][1]["runs"]))
    assert "| paper-a | measured, 1 diverged | – |" in text_of(report)
    assert effect(report, "paper-a", "validity").startswith("diverged")
    assert "- paper-a: diverged by validity" in text_of(report, "changes", "paper")


@pytest.mark.parametrize(
    ("found", "text"),
    [(0.0, "0"), (0.3331, "0.333"), (57723.777, "57724"), (12.345, "12.3"), (-0.02, "-0.0200"),
     (4.2e-6, "4.20e-06"), (1e7, "1.00e+07"), (None, "–")],
)  # fmt: skip
def test_numbers_have_three_digits(found, text):
    assert number(found) == text


def test_noise_that_leaves_no_crystals_has_a_fraction_and_no_distance():
    def points(*rows):
        keys = ("share", "frechet", "n", "failed")
        return [dict(zip(keys, r, strict=True)) | {"error": r[1] and 0.1} for r in rows]

    mild = points((0.0, 0.1, 8, 0), (0.5, 1.0, 8, 0), (1.0, 3.0, 6, 2))
    collapsing = points((0.0, 0.1, 8, 0), (0.5, 2.0, 4, 4), (1.0, None, 1, 7))
    curves = {"default": {"points": mild}, "paper": {"points": collapsing}}
    noise = ABOUT | {"experiment": "figure3", "curves": curves}
    distance, lost = (
        [line.get_xydata().round(3).tolist() for line in axes.lines]
        for axes in draw_noise(noise).axes
    )
    assert [[0.0, 0.1], [0.5, 2.0]] in distance
    assert [[0.0, 0.0], [0.5, 0.5], [1.0, 0.875]] in lost
    assert "| 1 | 3.00 (2 without) | – (7 without) |" in text_of(noise)
    default, paper = text_of(noise, "rise").split("; `")
    assert "0.100 at t = 0, rises at every step, to 3.00 at 1 T" in default
    assert "to 2.00 at 0.5 T; at T 88 % of the crystals have no features" in text_of(noise, "rise")
    assert paper.startswith("paper`")
    mild[1]["frechet"] = 4.0
    assert "rises but for t = 1 T, to 3.00" in text_of(noise, "rise")


def test_sizes_and_times_follow_from_the_numbers():
    points = [{"n": n, "mean": 1 / n, "spread": 0.01 / n} for n in (64, 128, 1000)]
    sizes = ABOUT | {"experiment": "figure4", "points": points, "limit": 0.001}
    assert "| 1000 | 0.00100 | 1.00e-05 |" in text_of(sizes)
    words = "real against real: 0.00100 at 1000 crystals, 0.00100 beyond all sizes"
    assert text_of(sizes, "size_in_words") == words
    own = {"epochs": 512, "ablation_epochs": 128, "steps": 100}
    own |= {"ablation_trainings": 14, "ablation_samples": 16}
    amounts = {"train": 1000, "compositions": 100, "seeds": 8, "ablation_seeds": 2}
    rates = {"crystals_per_second": 10.0, "seconds_per_step": 0.036}
    faster = {key: v * f for (key, v), f in zip(rates.items(), (10, 0.1), strict=True)}
    times = {"amounts": amounts | {"paper": own, "default": own | {"ablation_samples": 22}}}
    text = text_of(
        ABOUT | times | {"experiment": "times", "presets": {"paper": rates, "default": faster}}
    )
    # 512 000 crystals at 10 a second are 14.2 hours; 14 trainings of 3.56 hours, 16 × 6 minutes.
    for line in (
        "| training at full size, measured | 10 crystals/s | 100 crystals/s |",
        "| a step of sampling one crystal, measured | 36 ms | 3.6 ms |",
        "| a training of 512 epochs (Tables 2 and 3, one seed) | 14 hours | 85 minutes |",
        "| 100 crystals sampled by one model | 6 minutes | 36 s |",
        "| Tables 2 and 3, 8 seeds | 4.8 days | 11 hours |",
        "| Table 4, 2 seeds | 2.1 days | 5.2 hours |",
    ):
        assert line in text


def test_the_probe_figure_shows_every_mean_and_the_words_follow():
    keys = ("features", "n_train", "seed", "mae", "r2", "right_order")
    scores = [
        dict(zip(keys, (name, n, seed, mae + 0.01 * seed, 0.5, None), strict=True))
        for name, mae in (("latent", 0.2), ("composition", 0.4), ("untrained latent", 0.3))
        for n in (100, 1000)
        for seed in (0, 1)
    ]
    found = {"probe": {"target": "energy", "spread": 0.9, "scores": scores}}
    lines = [line.get_ydata() for line in draw_probe(found).axes[0].lines]
    for mean in (0.205, 0.405, 0.305):
        assert any(len(line) == 2 and np.allclose(line, mean) for line in lines)
    assert probe_verdict(found).startswith("better than its controls: ")
    scores[2]["mae"] = 0.5
    assert probe_verdict(found).startswith("no better than untrained latent: ")
    text = text_of(ABOUT | found | {"experiment": "latent"})
    assert "| composition | 0.405 ± 0.0071 | 0.500 ± 0 | – |" in text


def test_an_unknown_energy_is_not_drawn_as_zero_and_cells_have_bars_without_groups():
    latent = {
        "x": [0.0, 1.0, 2.0], "y": [1.0, 0.0, 1.0], "explained": [0.6, 0.4],
        "anions": ["oxide", "halide", "oxide"], "energy_ev_per_atom": [None, -1.0, -2.0],
        "density_g_cm3": [1.0, 2.0, 3.0],
    }  # fmt: skip
    panels = draw_latent_map({"map": latent}).axes[:3]
    assert [len(axes.collections[0].get_offsets()) for axes in panels] == [3, 2, 3]
    unknown = {"map": latent | {"energy_ev_per_atom": [None] * 3}}
    titles = [axes.get_title() for axes in draw_latent_map(unknown).axes]
    assert ("density" in titles, "formation energy" in titles) == (True, False)
    sets = [
        {"name": "real", "symprec": 0.1, "groups": [225, 2], "holohedries": [225, 12]},
        {"name": "prior", "symprec": 0.1, "groups": [], "holohedries": [2, 2]},
    ]
    cells, groups = draw_lattice_systems({"lattices": {"sets": sets}}).axes
    for axes, key, n_bars in ((cells, "holohedries", 2), (groups, "groups", 1)):
        bars = [[b.get_height() for b in c] for c in axes.containers if len(c) == 7]
        bars = [row for row in bars if np.isfinite(row).all()]
        assert len(bars) >= n_bars
        assert bars[0] == pytest.approx(list(shares(sets[0][key]).values()))
