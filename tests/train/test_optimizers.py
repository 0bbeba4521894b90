"""Muon with Adam against torch's two, run apart; averages and rates in closed form."""

import copy

import pytest
import torch
from torch import nn

from crystorus.config import TrainingConfig
from crystorus.errors import TrainingError
from crystorus.train.optimizers import (
    averaged,
    build_optimizers,
    hidden_matrices,
    rate_factor,
)

BETAS = (0.9, 0.99)
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it from 2.9 on")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 20)
        self.blocks = nn.ModuleList([nn.Linear(20, 24), nn.Linear(24, 8)])

    def forward(self, x):
        for layer in (self.embed, *self.blocks):
            x = torch.tanh(layer(x))
        return x


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def both(network):
    return build_optimizers(
        network, TrainingConfig(optimizer="muon", learning_rate=0.02, adam_beta2=BETAS[1])
    )


def walk(network, optimizers, steps, first=0):
    for k in range(first, first + steps):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(k))
        network.zero_grad()
        (network(x) - x.sum()).square().mean().backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.02 / (1 + k)
            optimizer.step()


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_only_large_matrices_inside_blocks_are_orthogonalised():
    network = net()
    matrices, others = hidden_matrices(network)
    assert [m.shape for m in matrices] == [(24, 20)]
    assert len(matrices) + len(others) == len(list(network.parameters()))


@needs_muon
def test_it_is_muon_and_adam_side_by_side():
    together, apart = net(), net()
    walk(together, both(together), 6)
    matrices, others = hidden_matrices(apart)
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    walk(apart, [muon, torch.optim.Adam(others, lr=0.02, betas=BETAS)], 6)
    assert torch.equal(weights(together), weights(apart))
    only_adam = net()
    walk(only_adam, [torch.optim.Adam(only_adam.parameters(), lr=0.02, betas=BETAS)], 6)
    assert not torch.allclose(weights(together), weights(only_adam), atol=1e-3)


@needs_muon
def test_a_loaded_state_goes_on_bit_for_bit():
    network = net()
    optimizers = both(network)
    walk(network, optimizers, 3)
    resumed = copy.deepcopy(network)
    states = copy.deepcopy([optimizer.state_dict() for optimizer in optimizers])
    walk(network, optimizers, 3, first=3)
    fresh = both(resumed)
    for optimizer, state in zip(fresh, states, strict=True):
        optimizer.load_state_dict(state)
    walk(resumed, fresh, 3, first=3)
    assert torch.equal(weights(network), weights(resumed))


def test_a_torch_without_muon_is_named(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(TrainingError, match=r"has no Muon: install torch 2\.9 .*adam"):
        build_optimizers(net(), TrainingConfig(optimizer="muon"))


def test_a_network_without_matrices_is_named():
    with pytest.raises(TrainingError, match="no hidden matrices"):
        build_optimizers(nn.Linear(3, 3), TrainingConfig(optimizer="muon"))


def test_the_average_forgets_its_start_and_follows_its_decay():
    network = nn.Linear(3, 1, bias=False)
    network.register_buffer("count", torch.tensor(0))
    average = averaged(network, 0.9)
    expected = None
    for k in range(300):
        value = 10 + torch.sin(torch.arange(3.0) + k)
        with torch.no_grad():
            network.weight.copy_(value)
            network.count += 1
        average.update_parameters(network)
        keep = min(0.9, (1 + k) / (10 + k))
        expected = value if expected is None else keep * expected + (1 - keep) * value
        assert torch.allclose(average.module.weight, expected, atol=1e-5)
        assert torch.equal(network.weight[0], value)
        assert average.module.count == k + 1


@pytest.mark.parametrize(
    ("step", "progress", "expected"),
    [(0, 0.0, 0.1), (4, 0.1, 0.5), (9, 0.2, 1.0), (50, 0.5, 1.0), (60, 0.75, 1.0),
     (80, 0.875, 0.5), (99, 1.0, 0.0), (120, 1.2, 0.0)],
)  # fmt: skip
def test_the_rate_rises_stays_and_falls(step, progress, expected):
    factor = rate_factor(step, progress, warmup_steps=10, decay=0.25)
    assert factor == pytest.approx(expected)


def test_without_warmup_and_decay_the_rate_is_constant():
    assert {rate_factor(k, k / 9, warmup_steps=0, decay=0.0) for k in range(12)} == {1.0}
