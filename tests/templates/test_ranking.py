"""The network that weighs templates: what must not change its answer, and what it has learned."""

import importlib
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from crystorus.data.compositions import parse_formula
from crystorus.templates.library import build_library
from crystorus.templates.ranking import (
    FEATURES,
    AveragedRanking,
    Shortlist,
    shipped_ranking,
    shortlist,
)
from crystorus.templates.retrieval import (
    DISTINCT_FROM,
    considered_fits,
    cost_weights,
    find_templates,
)
from crystorus.templates.substitution import count_substitutions
from crystorus.templates.surroundings import difference, match_probability

TOOL = Path(__file__).parents[2] / "tools/train_template_ranking.py"


@pytest.fixture
def described(library):
    composition = parse_formula("KBr")
    fits = considered_fits(library, composition)
    volumes = shipped_ranking().log_volumes.numpy()
    every, weights = np.arange(len(fits)), np.log(cost_weights(fits.cost, fits.cost.min()))
    return shortlist(library, composition, fits, every, weights, volumes)


def weigh(several: Shortlist) -> torch.Tensor:
    with torch.no_grad():
        return shipped_ranking()(several)


def test_weights_are_probabilities_that_leave_some_for_none_of_the_templates(described):
    assert described.features.shape[-1] == FEATURES
    assert described.features.isfinite().all()
    weight = weigh(described)
    assert weight.min() >= 0
    assert 0.5 < weight.sum() < 1
    # Where every template costs much, none of them is right more often.
    features = described.features.clone()
    features[..., 1] += 3
    assert weigh(described._replace(features=features)).sum() < weight.sum()


def test_confidence_is_sharpened_without_a_change_of_order(described):
    ranking = AveragedRanking([shipped_ranking().members[0]])
    with torch.no_grad():
        plain = ranking(described)[0]
        assert torch.allclose(plain, shipped_ranking().members[0](described)[0], atol=1e-5)
        ranking.sharpness.fill_(0.5)
        flatter = ranking(described)[0]
        ranking.none_factor.fill_(4.0)
        humbler = ranking(described)[0]
    # w ∝ w̄^½, none of them among what it is proportional to.
    root = torch.cat([plain, 1 - plain.sum(0, keepdim=True)]).sqrt()
    assert torch.allclose(flatter, (root / root.sum())[:-1], atol=1e-5)
    root[-1] *= 4
    assert torch.allclose(humbler, (root / root.sum())[:-1], atol=1e-5)
    assert torch.equal(plain.argsort(), flatter.argsort())


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(TOOL.parent)
    return importlib.import_module(TOOL.stem)


def test_a_crystal_left_out_is_left_out_of_the_counts(library, tool):
    counted = replace(library, substitution=count_substitutions(library.slots))
    left_out = tool.LeftOut(counted)
    for index in range(len(library)):
        others = [one for n, one in enumerate(library.slots) if n != index]
        without, expected = left_out(index).substitution, count_substitutions(others)
        assert np.array_equal(without.same, expected.same)
        assert np.array_equal(without.other, expected.other)
        assert left_out(index).group((1, 1)) is counted.group((1, 1))
    # As small as it is, it has the counts of MP-20: nothing of its own is in them.
    assert tool.LeftOut(library)(0).substitution is library.substitution


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kept", "0"], "--kept, --networks, --epochs and --workers are 1 or more"),
        (["--out", "missing/x.safetensors"], "missing is no folder that can be written to"),
        (["--kept", "7"], "of 7 crystals --kept 7 leaves none to learn from"),
        (["--kept", "1", "--crystals", "1"], "of 1 crystals --kept 1 leaves none"),
        # Rocksalt has templates to choose from; rutile, the second drawn, has none.
        (["--kept", "1", "--crystals", "2"], "1 of the crystals kept aside and 0 of the others"),
    ],
)
def test_fitting_the_networks_says_at_once_what_is_wrong(
    arguments, message, source, tool, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    build_library(source, tmp_path / "known.templates")
    # In this process, which others share.
    alone = SimpleNamespace(Pool=ThreadPool)
    monkeypatch.setattr("multiprocessing.get_context", lambda method: alone)
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)
    given = ["tool", "known.templates", "--out", "x.safetensors", *arguments]
    monkeypatch.setattr("sys.argv", given)
    with pytest.raises(SystemExit, match="2"):
        tool.main()
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()


def test_the_default_precision_of_the_process_does_not_matter(library):
    """A potential that was loaded before may have made it float64."""
    expected = find_templates(library, parse_formula("RbBr"))
    shipped_ranking.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        found = find_templates(library, parse_formula("RbBr"))
    finally:
        torch.set_default_dtype(torch.float32)
        shipped_ranking.cache_clear()
    assert [one.template for one in found] == [one.template for one in expected]
    assert [one.prototype_fraction for one in found] == pytest.approx(
        [one.prototype_fraction for one in expected], abs=1e-6
    )


def test_the_order_of_templates_and_padding_do_not_matter(described):
    # Single precision: squares of differences are those of numbers near 1, against 0.023².
    order = torch.randperm(described.mask.shape[1], generator=torch.Generator().manual_seed(0))
    turned = Shortlist(
        described.wanted, described.counts, *(column[:, order] for column in described[2:])
    )
    assert torch.allclose(weigh(turned), weigh(described)[:, order], atol=1e-3)
    shorter = [column[0, :2] for column in described[2:]]
    padded = [
        pad_sequence([column[0], less], batch_first=True)
        for column, less in zip(described[2:], shorter, strict=True)
    ]
    both = weigh(Shortlist(described.wanted.repeat(2, 1), described.counts.repeat(2, 1), *padded))
    alone = Shortlist(described.wanted, described.counts, *(less[None] for less in shorter))
    assert torch.allclose(both[:1], weigh(described), atol=1e-3)
    assert torch.allclose(both[1:, :2], weigh(alone), atol=1e-3)
    assert both[1, 2:].abs().max() == 0


def test_the_order_of_elements_does_not_matter(described):
    other = Shortlist(
        described.wanted.flip(1),
        described.counts.flip(1),
        described.old.flip(2),
        described.distances.flip(2, 3),
        *described[4:],
    )
    assert torch.allclose(weigh(other), weigh(described), atol=1e-3)
    elsewhere = described._replace(distances=described.distances.roll(1, 1))
    assert not torch.allclose(weigh(elsewhere), weigh(described), atol=1e-2)


def test_templates_are_distinct_and_ordered_however_many_are_asked_for(library):
    every = find_templates(library, parse_formula("RbBr"), limit=20)
    assert len(every) >= 3
    for n, one in enumerate(every):
        for other in every[:n]:
            assert difference(one.distances, other.distances) >= DISTINCT_FROM
    fractions = [one.prototype_fraction for one in every]
    assert fractions == sorted(fractions, reverse=True)
    assert sum(fractions) <= 1 + 1e-6
    for limit in (1, 2, 3):
        some = find_templates(library, parse_formula("RbBr"), limit=limit)
        assert [one.template for one in some] == [one.template for one in every[:limit]]


def test_the_first_template_is_the_one_most_likely_to_match(library):
    """Rocksalt for the smaller ions, as known: the templates of other halides stand for both."""
    assert find_templates(library, parse_formula("NaBr"))[0].template_id in {"NaCl", "LiF", "KBr"}


def test_a_match_is_less_likely_the_more_surroundings_differ():
    chance = match_probability(np.linspace(0, 2, 200))
    assert chance[0] == 1
    assert (np.diff(chance) <= 0).all()
    assert chance[-1] < 0.01
