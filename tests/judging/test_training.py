"""A judge learns to tell right from wrong where there is something to tell, and only there."""

import math

import pytest
import torch
from judging.conftest import known

from crystorus.crystal_model import CrystalModel
from crystorus.geometry import Crystals
from crystorus.judging.candidates import Group
from crystorus.judging.errors import JudgingError
from crystorus.judging.training import BY_ITSELF, Lessons, judging_loss, report, train_judge

LESSONS = Lessons(epochs=12, learning_rate=3e-3, head_learning_rate=1e-2, bf16=False)
CANDIDATES = 4


def groups(count: int, *, told: bool) -> list[Group]:
    """One prototype among copies with displaced atoms; `told` marks it, otherwise a random one."""
    generator = torch.Generator().manual_seed(count)
    result = []
    for crystal in known(count):
        place = int(torch.randint(CANDIDATES, (), generator=generator))
        marked = place if told else int(torch.randint(CANDIDATES, (), generator=generator))
        some = []
        for n in range(CANDIDATES):
            moved = 0.15 * torch.randn(crystal.frac_coords.shape, generator=generator)
            frac = crystal.frac_coords + (0.0 if n == place else moved)
            some.append(crystal.with_geometry(crystal.lattice, frac % 1))
        right = torch.arange(CANDIDATES) == marked
        result.append(Group(Crystals.concat(some), right))
    return result


def test_the_right_one_is_found_among_others_it_has_not_seen(model):
    passes = []
    judge = train_judge(
        model,
        groups(96, told=True),
        LESSONS,
        held_out=groups(40, told=True),
        on_epoch=lambda epoch, loss, found: passes.append((loss, found)),
    )
    first, last = passes[0], passes[-1]
    assert last[0] < first[0] / 2
    assert last[1].chosen >= 0.8
    assert last[1].any == 1.0
    assert last[1].brier < 0.15  # 0.19 says 1/4 of all
    assert last[1] == report(judge, groups(40, told=True))


def test_where_there_is_nothing_to_tell_it_chooses_at_random(model):
    """The control: marks that say nothing."""
    judge = train_judge(model, groups(96, told=False), LESSONS)
    assert report(judge, groups(200, told=False)).chosen < 0.4  # 1/4 by chance, s.e. 0.03


def test_training_leaves_the_model_as_it_was(model):
    before = {k: v.clone() for k, v in model.denoiser.state_dict().items()}
    judge = train_judge(model, groups(16, told=True), Lessons(epochs=1, bf16=False))
    for name, value in model.denoiser.state_dict().items():
        assert torch.equal(value, before[name])
    assert model.judge is None
    assert not torch.equal(
        judge.network.weights.weight, model.denoiser.network.weights.weight
    ) or any(
        not torch.equal(new, old)
        for new, old in zip(
            judge.network.parameters(), model.denoiser.network.parameters(), strict=True
        )
    )


def test_the_loss_by_hand():
    odds = torch.tensor([[0.0, math.log(3.0)], [1.0, 2.0]])
    right = torch.tensor([[False, True], [True, True]])
    # Of the first group 3/4 goes to the right one; the second has no wrong one to tell it from.
    alone = [math.log(2.0), math.log(4 / 3), math.log1p(math.exp(-1)), math.log1p(math.exp(-2))]
    expected = -math.log(0.75) / 2 + BY_ITSELF * sum(alone) / 4
    assert float(judging_loss(odds, right)) == pytest.approx(expected, rel=1e-6)


def test_the_loss_without_mixed_groups_is_finite_and_has_gradients():
    odds = torch.zeros(2, 3, requires_grad=True)
    judging_loss(odds, torch.tensor([[True] * 3, [False] * 3])).backward()
    assert torch.isfinite(odds.grad).all()


def test_nothing_to_learn_from_is_refused(model):
    (group,) = groups(1, told=True)
    alike = [Group(group.crystals, torch.ones(CANDIDATES, dtype=torch.bool))]
    with pytest.raises(JudgingError, match="--compositions or --candidates"):
        train_judge(model, alike, LESSONS)


def test_another_preset_is_refused(model):
    paper = CrystalModel(model.config, torch.nn.Linear(1, 1), model.diffusion, model.statistics)
    with pytest.raises(JudgingError, match="default preset"):
        train_judge(paper, groups(4, told=True), LESSONS)
