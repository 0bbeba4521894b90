"""Both cell processes: forward law, reverse law, closed forms, and what SL₃(Z) does to them."""

import numpy as np
import pytest
import torch
from prototypes import all_prototypes
from scipy.stats import kstest

from crystorus.diffusion.cell_log import LogLatticeProcess
from crystorus.diffusion.cell_prior import CellStatistics, fit_cell_statistics
from crystorus.diffusion.cell_strain import StrainProcess, predicted_strain
from crystorus.diffusion.noise_levels import (
    CrystalNoise,
    cumulative_alpha,
    geometric_levels,
    linear_betas,
)
from crystorus.diffusion.process import CellProcess
from crystorus.geometry import Crystals, Prediction
from crystorus.geometry.lattice import (
    from_coefficients,
    lattice_log,
    symmetric_exp,
    symmetric_log,
    to_coefficients,
)

N = 20000
CELL = torch.tensor([[3.0, 0.4, 0.1], [0.0, 4.0, -0.7], [0.0, 0.0, 6.0]], dtype=torch.float64)


def strain_process() -> StrainProcess:
    return StrainProcess(
        geometric_levels(0.01, 0.45, 100),
        geometric_levels(0.01, 0.3, 100),
        CellStatistics.neutral(),
    )


def log_process(space="log") -> LogLatticeProcess:
    return LogLatticeProcess(cumulative_alpha(linear_betas(1e-5, 1e-1, 100)), space=space)


def crystals(cells: torch.Tensor) -> Crystals:
    """One atom at the origin of every cell."""
    ones = torch.ones(len(cells), dtype=torch.long)
    return Crystals(cells, cells.new_zeros(len(cells), 3), ones, ones)


class Draws(CrystalNoise):
    """Gives the noise of cells that a test has drawn, one batch after the other."""

    def __init__(self, *batches: torch.Tensor) -> None:
        self.batches = list(batches)

    def normal_cells(self) -> torch.Tensor:
        return self.batches.pop(0)


def normal(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, 6, generator=generator, dtype=torch.float64)


def perfect(lattice: torch.Tensor, strain: torch.Tensor) -> Prediction:
    return Prediction(lattice, torch.zeros(0, 3, dtype=torch.float64), strain)


def levels(t: int) -> torch.Tensor:
    return torch.full((N,), t)


def is_normal(values: torch.Tensor, mean: float, sigma: float) -> float:
    return kstest(((values - mean) / sigma).numpy(), "norm").pvalue


@pytest.mark.parametrize("process", [strain_process(), log_process(), log_process("euclidean")])
def test_what_noise_returns_is_what_the_loss_takes(process):
    """The protocol: a cell in Å and a target of any kind, of which a perfect prediction loses 0."""
    assert isinstance(process, CellProcess)
    clean, t = crystals(CELL.repeat(4, 1, 1)), torch.full((4,), 60)
    lattice, target = process.noise(clean, t, normal(0)[:4])
    assert lattice.shape == (4, 3, 3)
    ratio = torch.linalg.inv(clean.lattice) if isinstance(process, StrainProcess) else None
    strain = None if ratio is None else symmetric_log(lattice @ ratio)
    assert process.loss(perfect(clean.lattice, strain), target).max() < 1e-9
    assert process.loss(perfect(1.1 * clean.lattice, None), target).min() > 1e-3
    assert process.prior(clean, CrystalNoise([0, 1, 2, 3], clean.n_atoms)).shape == (4, 3, 3)


@pytest.mark.parametrize(("t", "s"), [(100, 99), (100, 40), (30, 1)])
def test_strain_bridge_has_the_forward_law_of_the_lower_level(t, s):
    p = strain_process()
    cells = CELL.expand(N, 3, 3)
    noisy, (strain, *_) = p.noise(crystals(cells), levels(t), normal(1))
    lower = p.reverse(noisy, perfect(cells, strain), levels(t), levels(s), normal(2))
    # ρ_s = exp(E_s) ρ_0, so E_s is read off from the ratio.
    found = to_coefficients(predicted_strain(Prediction(cells, torch.zeros(0, 3)), lower))
    for k in (0, 3, 5):
        assert is_normal(found[:, k], 0.0, float(p.sigma[s, k])) > 1e-3
        assert is_normal(found[:, k], 0.0, 1.2 * float(p.sigma[s, k])) < 1e-3


@pytest.mark.parametrize(("t", "s"), [(100, 99), (100, 40), (30, 1)])
def test_log_posterior_has_the_forward_law_of_the_lower_level(t, s):
    p = log_process()
    cells = CELL.expand(N, 3, 3)
    noisy, _ = p.noise(crystals(cells), levels(t), normal(1))
    lower = p.encode(p.reverse(noisy, perfect(cells, None), levels(t), levels(s), normal(2)))
    alpha = float(p.cumulative_alpha[s])
    clean = p.encode(CELL[None])[0]
    for k in (0, 3, 5):
        mean = alpha**0.5 * float(clean[k])
        assert is_normal(lower[:, k], mean, (1 - alpha) ** 0.5) > 1e-3


def test_log_posterior_is_ddpms_for_neighbouring_steps():
    p = log_process()
    betas = linear_betas(1e-5, 1e-1, 100)
    bar = p.cumulative_alpha
    t = 37
    w0, wt, variance = p.posterior(torch.tensor([t]), torch.tensor([t - 1]), CELL)
    beta, alpha = betas[t - 1], 1 - betas[t - 1]
    assert float(w0) == pytest.approx(float(bar[t - 1].sqrt() * beta / (1 - bar[t])))
    assert float(wt) == pytest.approx(float(alpha.sqrt() * (1 - bar[t - 1]) / (1 - bar[t])))
    assert float(variance) == pytest.approx(float(beta * (1 - bar[t - 1]) / (1 - bar[t])))


def test_strain_noise_commutes_with_retiling_and_log_noise_does_not():
    change = torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    inverse = torch.linalg.inv(change)
    t, noise = torch.tensor([80]), normal(3)[:1]
    strain = strain_process()
    first = strain.noise(crystals(CELL[None]), t, noise)[0] @ inverse
    second = strain.noise(crystals(CELL[None] @ inverse), t, noise)[0]
    torch.testing.assert_close(first, second)
    log = log_process()
    a = log.noise(crystals(CELL[None]), t, noise)[0] @ inverse
    b = log.noise(crystals(CELL[None] @ inverse), t, noise)[0]
    assert (a.mT @ a - b.mT @ b).abs().max() > 1e-2


def test_no_noise_level_makes_a_cell_collapse():
    p = strain_process()
    noisy, _ = p.noise(crystals(CELL.expand(N, 3, 3)), levels(100), normal(4))
    assert (torch.linalg.det(noisy) > 0).all()


def test_first_order_cells_do_collapse():
    # The negative control: I + S, the paper's y^ρ, at the same strains.
    strain = from_coefficients(strain_process().sigma[-1] * 2 * normal(4))
    first_order = torch.eye(3, dtype=torch.float64) + strain
    assert (torch.linalg.det(first_order) <= 0).any()


def test_flow_ends_at_the_clean_cell():
    p, log = strain_process(), log_process()
    cells = CELL.expand(N, 3, 3)
    zero = levels(0)
    noisy, (strain, *_) = p.noise(crystals(cells), levels(70), normal(5))
    torch.testing.assert_close(p.flow(noisy, perfect(cells, strain), levels(70), zero), cells)
    noisy, _ = log.noise(crystals(cells), levels(70), normal(5))
    end = log.flow(noisy, perfect(cells, None), levels(70), zero)
    torch.testing.assert_close(lattice_log(end), lattice_log(cells), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("step", ["reverse", "flow"])
@pytest.mark.parametrize("drift", [1.5, 1000.0])
def test_drift_lengthens_the_step_of_a_lattice_vector_but_not_past_the_prediction(step, drift):
    p, t, s = log_process(), torch.tensor([60]), torch.tensor([50])
    clean = symmetric_exp(from_coefficients(0.3 * normal(1)[:1]))
    noisy, prediction = CELL[None], perfect(clean, None)
    noise = (torch.zeros(1, 6, dtype=torch.float64),) if step == "reverse" else ()

    def moved(factor: float) -> torch.Tensor:
        after = getattr(p, step)(noisy, prediction, t, s, *noise, drift=factor)
        return p.encode(after) - p.encode(noisy)

    assert moved(1.0).abs().max() > 0.01
    if drift < 2:
        torch.testing.assert_close(moved(drift), drift * moved(1.0))
    else:  # nothing is left of where it was: a multiple of the predicted vector
        ratio = (moved(drift) + p.encode(noisy)) / p.encode(clean)
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
    last = getattr(p, step)(noisy, prediction, t, torch.zeros_like(s), *noise, drift=drift)
    torch.testing.assert_close(p.encode(last), p.encode(clean))


@pytest.mark.parametrize("step", ["reverse", "flow"])
def test_drift_shortens_what_is_left_of_a_strain(step):
    p, t, s = strain_process(), torch.tensor([60]), torch.tensor([50])
    strain = from_coefficients(0.1 * normal(1)[:1])
    noisy, prediction = symmetric_exp(strain) @ CELL, perfect(CELL[None], strain)
    noise = (torch.zeros(1, 6, dtype=torch.float64),) if step == "reverse" else ()
    left = []
    for drift in (1.0, 1.5):
        after = getattr(p, step)(noisy, prediction, t, s, *noise, drift=drift)
        rest = predicted_strain(Prediction(CELL[None], torch.zeros(0, 3)), after)
        left.append(to_coefficients(rest) / to_coefficients(strain))
    torch.testing.assert_close(1 - left[1], 1.5 * (1 - left[0]))


@pytest.mark.parametrize("space", ["log", "euclidean"])
def test_log_process_encodes_and_decodes(space):
    p = log_process(space)
    cells = symmetric_exp(from_coefficients(normal(6)[:50] * 0.3))
    torch.testing.assert_close(p.decode(p.encode(cells)), cells)


def test_euclidean_noise_can_turn_a_cell_inside_out():
    # Table 4 (d): what the logarithm is there to prevent.
    noisy, _ = log_process("euclidean").noise(
        crystals(CELL.expand(N, 3, 3)), levels(100), normal(7)
    )
    assert (torch.linalg.det(noisy) <= 0).any()
    safe, _ = log_process("log").noise(crystals(CELL.expand(N, 3, 3)), levels(100), normal(7))
    assert (torch.linalg.det(safe) > 0).all()


def test_printed_prior_makes_cells_of_one_cubic_angstrom():
    volume = torch.linalg.det(
        log_process().prior(crystals(CELL.expand(N, 3, 3)), Draws(normal(8), normal(9)))
    )
    assert float(volume.log().std()) == pytest.approx(0.25 * 3**0.5, rel=0.05)
    assert float(volume.median()) == pytest.approx(1.0, rel=0.05)


def fake_crystals(count: int = 400) -> Crystals:
    """Crystals whose volume per atom is 10 Å³ for Z = 3 and 30 Å³ for Z = 8, geometric mixing."""
    generator = torch.Generator().manual_seed(0)
    n_atoms = torch.full((count,), 4)
    numbers = torch.where(torch.rand(4 * count, generator=generator) < 0.5, 3, 8)
    table = torch.zeros(119, dtype=torch.float64)
    table[3], table[8] = np.log(10.0), np.log(30.0)
    volume = 4 * table[numbers].view(count, 4).mean(1).exp()
    shape = 0.2 * torch.randn(count, 5, generator=generator, dtype=torch.float64)
    total = volume.log()[:, None] / 3**0.5
    lattice = symmetric_exp(from_coefficients(torch.cat([shape, total], 1)))
    return Crystals(lattice, torch.rand(4 * count, 3, dtype=torch.float64), numbers, n_atoms)


def test_statistics_recover_volumes_and_shapes():
    made = fake_crystals()
    found = fit_cell_statistics(made, ridge=1e-6)
    assert float(found.log_volume[3].exp()) == pytest.approx(10, rel=1e-3)
    assert float(found.log_volume[8].exp()) == pytest.approx(30, rel=1e-3)
    spread = (found.shape_scale @ found.shape_scale.T).diagonal().sqrt()
    assert spread.numpy() == pytest.approx(np.full(5, 0.2), rel=0.15)


def test_unseen_elements_get_the_mean_volume():
    made = fake_crystals()
    found = fit_cell_statistics(made)
    mean = (made.volume / made.n_atoms).log().mean()
    assert float(found.log_volume[92]) == pytest.approx(float(mean), rel=1e-5)


def test_prior_has_the_law_of_noised_training_cells():
    made = fake_crystals()
    stats = fit_cell_statistics(made)
    p = StrainProcess(geometric_levels(0.01, 0.45, 100), geometric_levels(0.01, 0.3, 100), stats)
    count = len(made)
    last = torch.full((count,), 100)
    prior = to_coefficients(lattice_log(p.prior(made, Draws(normal(1)[:count], normal(2)[:count]))))
    noised = to_coefficients(lattice_log(p.noise(made, last, normal(3)[:count])[0]))
    for k in range(6):
        assert kstest(prior[:, k].numpy(), noised[:, k].numpy()).pvalue > 1e-3


def test_predicted_strain_reads_cells_up_to_rotation():
    strain = from_coefficients(0.3 * normal(1)[:20])
    clean = all_prototypes()["rutile"].lattice.expand(20, 3, 3)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    noisy = symmetric_exp(strain) @ clean
    # A turned prediction is the same cell.
    found = predicted_strain(Prediction(clean, torch.zeros(0, 3)), noisy)
    torch.testing.assert_close(found, strain, atol=1e-10, rtol=1e-8)
    turned = predicted_strain(Prediction(clean, torch.zeros(0, 3)), rotation @ noisy)
    torch.testing.assert_close(turned, rotation @ strain @ rotation.T, atol=1e-10, rtol=1e-8)
