"""From requests to crystals in memory: batches, memory, choices among candidates, workers."""

import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from fake_model import FakeModel

import crystorus
from crystal_fidelity.workers import Workers
from crystorus.checkpoint import save_checkpoint
from crystorus.config import SamplerConfig, load_config
from crystorus.crystal_model import build_diffusion, build_model
from crystorus.data.compositions import Composition
from crystorus.data.convert import crystals_to_atoms
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.errors import GenerationError, RequestError
from crystorus.geometry.crystals import Crystals
from crystorus.networks import precision
from crystorus.sample import sampler as sampling
from crystorus.sample.choosing import FINAL_REFINEMENT_STEPS, candidate_seed, choose_crystals
from crystorus.sample.options import SampleOptions
from crystorus.sample.requests import make_requests
from crystorus.sample.sampler import (
    CANDIDATES,
    FAST,
    SamplingPlan,
    default_batch_atoms,
    free_memory,
    group_requests,
    is_out_of_memory,
    make,
    plan_sampling,
    sampling_at,
)
from crystorus.templates.skeletons import Skeleton, WeightedSkeleton

SMOKE = Path(__file__).parents[2] / "configs/smoke.toml"
LIFEO2 = Composition.of((3, 26, 8, 8))
SRTIO3 = Composition.of((38, 22, 8, 8, 8))
REQUESTS = make_requests([LIFEO2], n=13)
PLAN = SamplingPlan(SamplerConfig(steps=3))
NUMBERS, SIZES = torch.tensor([3, 8, 8, 26, 8]), torch.tensor([2, 3])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "best"
    torch.manual_seed(0)
    model = build_model(load_config(SMOKE, []), CellStatistics.neutral())
    model.trained_elements = frozenset({3, 8, 22, 26, 38})
    save_checkpoint(model, folder)
    return folder


# Batches


def padded_atoms(batch):
    return len(batch) * max(request.n_atoms for request in batch)


def test_batches_hold_every_request_once_within_the_limit():
    shuffle = random.Random(0)
    kinds = [Composition.of((8,) * n) for n in range(1, 21)]
    requests = make_requests(shuffle.choices(kinds, k=500))
    batches = group_requests(requests, batch_atoms=64)
    assert sorted(r.index for batch in batches for r in batch) == list(range(500))
    assert max(map(padded_atoms, batches)) <= 64
    padding = sum(map(padded_atoms, batches)) / sum(r.n_atoms for r in requests)
    unsorted = [requests[i : i + 3] for i in range(0, 500, 3)]
    assert padding < 1.1 < sum(map(padded_atoms, unsorted)) / sum(r.n_atoms for r in requests)


def test_one_crystal_beyond_the_limit_is_a_batch_of_its_own():
    batches = group_requests(make_requests([LIFEO2, SRTIO3], n=2), batch_atoms=1)
    assert [len(batch) for batch in batches] == [1, 1, 1, 1]


def test_files_can_grow_in_order_because_sorting_is_local():
    kinds = [Composition.of((8,) * n) for n in (20, 1)]
    requests = make_requests(kinds * 1000)
    batches = group_requests(requests, batch_atoms=100)
    first = {r.index for batch in batches[: len(batches) // 4] for r in batch}
    assert set(range(300)) <= first


def test_batches_that_take_long_are_small_so_that_little_is_lost():
    sizes = [default_batch_atoms(evaluations, "cpu") for evaluations in (12, 100, 1000, 10**6)]
    assert sizes == [1024, 512, 128, 128]


# Memory


def test_batches_are_halved_until_they_fit_and_nothing_is_lost():
    made = list(make(FakeModel(memory_atoms=8), REQUESTS, PLAN))
    assert [r.index for part in made for r in part.requests] == list(range(13))
    assert all(padded_atoms(part.requests) <= 8 for part in made)
    (whole,) = make(FakeModel(), REQUESTS, PLAN)
    together = torch.cat([part.crystals.frac_coords for part in made])
    assert torch.equal(together, whole.crystals.frac_coords)


def test_what_did_not_fit_is_not_tried_again():
    model, tried = FakeModel(memory_atoms=8), []
    sample = model.sample
    model.sample = lambda z, n, **rest: tried.append(len(n)) or sample(z, n, **rest)
    list(make(model, make_requests([LIFEO2], n=26), replace(PLAN, batch_atoms=52)))
    assert tried[:3] == [13, 4, 2]
    assert max(tried[3:]) <= 2


def test_a_single_crystal_that_does_not_fit_ends_the_run_with_a_remedy():
    with pytest.raises(GenerationError, match=r"single crystal of 4 atoms.*--device"):
        list(make(FakeModel(memory_atoms=3), REQUESTS, PLAN))


def test_memory_is_reckoned_before_it_is_taken(monkeypatch):
    model = FakeModel()
    monkeypatch.setattr(sampling, "free_memory", lambda device: 20**2 * sampling.PAIR_BYTES / 0.8)
    made = list(make(model, REQUESTS, PLAN))
    assert max(len(part) * 4**2 for part in made) <= 20**2 < 2 * max(model.batches) * 4**2 + 1
    huge = make_requests([LIFEO2 * 300])
    with pytest.raises(GenerationError, match=r"1200 atoms.*takes 20 at most.*smaller cells"):
        list(make(model, huge, PLAN))
    assert max(model.batches) * 16 <= 20**2, "it was not tried"


def test_free_memory_is_asked_of_the_machine():
    free = free_memory("cpu")
    assert free is None or 2**20 < free < 2**50
    assert free_memory("mps") is None


@pytest.mark.parametrize("failure", [RuntimeError("shape mismatch"), ValueError("no"), OSError(5)])
def test_other_errors_are_not_swallowed(failure):
    with pytest.raises(type(failure)):
        list(make(FakeModel(failure=failure), REQUESTS, PLAN))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_every_device_says_it_in_its_own_words(error):
    assert is_out_of_memory(error)


def test_other_runtime_errors_are_no_lack_of_memory():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_real_allocation_that_cannot_succeed_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


# Samplers and plans


OWN = SamplerConfig(steps=7)


def model_with(*, scorer=False, preset="default", own=OWN, levels=1000):
    model = FakeModel()
    levels_only = replace(model.config.diffusion, steps=levels)
    model.config = replace(model.config, preset=preset, sampling=own, diffusion=levels_only)
    model.diffusion = build_diffusion(replace(model.config, preset="default"), model.statistics)
    model.scorer = object() if scorer else None
    return model


def test_with_a_scorer_a_quality_is_a_number_of_fast_sampling_runs():
    model = model_with(scorer=True)
    assert [sampling_at(quality, model) for quality in CANDIDATES] == [
        (FAST, 1),
        (FAST, 8),
        (FAST, 32),
    ]
    assert sampling_at("best", model_with(scorer=True, levels=10))[0].steps == 10


def test_without_a_scorer_default_is_the_checkpoints_own_and_no_quality_outgrows_it():
    model = model_with(levels=50)
    assert sampling_at("default", model) == (model.config.sampling, 1)
    assert sampling_at("fast", model) == (FAST, 1)
    assert sampling_at("best", model)[0].steps == 50
    assert sampling_at("best", model_with())[0].steps >= 10 * FAST.steps


def test_paper_keeps_its_sampler_at_every_quality():
    model = model_with(preset="paper", own=SamplerConfig("paper", 50), levels=100, scorer=True)
    assert sampling_at("fast", model) == (SamplerConfig("paper", 5), 1)
    assert sampling_at("default", model) == (SamplerConfig("paper", 50), 1)
    assert sampling_at("best", model) == (SamplerConfig("paper", 100), 1)


def test_what_is_asked_for_comes_before_the_quality():
    model = model_with(scorer=True)

    def chosen(**options):
        plan = planned(model, **options)
        return plan.sampler, plan.candidates

    assert chosen() == chosen(quality="default") == (FAST, 8)
    assert chosen(candidates=3) == (FAST, 3)
    assert chosen(quality="fast", candidates=3) == (FAST, 3)
    assert chosen(steps=5) == (SamplerConfig(steps=5), 1)
    assert chosen(sampler="ode") == (SamplerConfig("ode", 7), 1)
    own = SamplerConfig(steps=4)
    mine = plan_sampling(model, REQUESTS, SampleOptions(), sampler=own)[1]
    assert (mine.sampler, mine.candidates) == (own, 1)


def planned(model=None, **options):
    return plan_sampling(model or FakeModel(), REQUESTS, SampleOptions(**options))[1]


def test_more_steps_than_levels_are_refused():
    with pytest.raises(RequestError, match=r"2000 steps.*1 to 1000"):
        planned(steps=2000)
    assert planned(steps=1000).sampler.steps == 1000


def test_automatic_precision_follows_the_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "CPU_FEATURES", tmp_path / "cpuinfo")
    for features, expected in (("fma avx2", "fp32"), ("fma avx512_bf16", "bf16")):
        (tmp_path / "cpuinfo").write_text(f"flags : {features}\n")
        assert planned(precision="auto").sampler.precision == expected
    monkeypatch.setattr(precision, "CPU_FEATURES", tmp_path / "absent")
    assert not precision.has_fast_bf16("cpu")
    assert not precision.has_fast_bf16("mps")


def test_paper_has_no_bf16():
    model = FakeModel()
    model.config = replace(model.config, preset="paper")
    with pytest.raises(RequestError, match="--precision bf16 is for the default preset"):
        planned(model, precision="bf16")
    assert planned(model, precision="auto").sampler.precision == "fp32"


def test_bf16_changes_products_of_this_call_only(checkpoint):
    model = crystorus.load(checkpoint)
    plain = SamplerConfig(steps=2)
    first, rounded, again = (
        crystorus.generate("SrTiO3", model=model, sampler=sampler).crystals
        for sampler in (plain, replace(plain, precision="bf16"), plain)
    )
    assert torch.equal(first.lattice, again.lattice)
    assert not torch.equal(first.lattice, rounded.lattice)
    torch.testing.assert_close(first.lattice, rounded.lattice, atol=0.2, rtol=0.05)


# Choices among candidates


def choose(model, candidates, **options):
    return choose_crystals(
        model,
        NUMBERS,
        SIZES,
        seeds=[1, 2],
        sampler=SamplerConfig(steps=3),
        candidates=candidates,
        **options,
    )


def crowded(crystals):
    """Tell which have atoms nearer than 0.6 of the sum of their covalent radii, by ASE."""
    frames = crystals_to_atoms(crystals)
    radii = [0.6 * covalent_radii[atoms.numbers] for atoms in frames]
    return torch.tensor(
        [len(neighbor_list("d", *pair)) > 0 for pair in zip(frames, radii, strict=True)]
    )


def every_candidate(model, count):
    return [
        model.sample(
            NUMBERS,
            SIZES,
            seeds=[candidate_seed(seed, number) for seed in (1, 2)],
            sampler=SamplerConfig(steps=3),
        )
        for number in range(count)
    ]


def test_the_most_probable_candidate_of_each_crystal_is_kept():
    model = FakeModel()
    every = every_candidate(model, 12)
    errors = torch.stack(
        [torch.where(crowded(made), torch.inf, model.score(made)) for made in every]
    )
    assert torch.isinf(errors[0]).any()
    crystals, error, *_ = choose(model, 12)
    assert error.isfinite().all()
    torch.testing.assert_close(error, errors.min(0).values)
    for n, number in enumerate(errors.argmin(0).tolist()):
        kept, made = crystals.select([n]), every[number].select([n])
        assert torch.equal(kept.lattice, made.lattice)
        assert torch.equal(kept.frac_coords, made.frac_coords)
    assert len({candidate_seed(1, number) for number in range(100)}) == 100


def test_candidates_meet_one_noise_that_none_of_them_began_at():
    model, asked = FakeModel(), []
    score = model.scorer_error

    def record(crystals, *, seeds, **options):
        asked.append(list(seeds))
        return score(crystals, seeds=seeds, **options)

    model.scorer_error = record
    choose(model, 4)
    scored = {seed for seeds in asked for seed in seeds}
    assert len(scored) == 2, "one per crystal, whichever candidates are valid"
    begun = {candidate_seed(seed, number) for seed in (1, 2) for number in range(4)}
    assert not begun & scored


def test_the_first_candidate_is_what_is_made_without_a_choice():
    model = FakeModel()
    plain = model.sample(NUMBERS, SIZES, seeds=[1, 2], sampler=SamplerConfig(steps=3))
    assert torch.equal(choose(model, 1)[0].lattice, plain.lattice)


def test_crowded_and_broken_candidates_are_kept_only_where_there_is_nothing_else():
    class Colliding(FakeModel):
        def _crystal(self, numbers, seed):
            crystal = super()._crystal(numbers, seed)
            if seed == 1:  # the first candidate of the first crystal: what scores best
                return crystal.with_geometry(
                    1e3 * crystal.lattice, torch.zeros_like(crystal.frac_coords)
                )
            if seed == 2:
                return crystal.with_geometry(torch.nan * crystal.lattice, crystal.frac_coords)
            return crystal

    first = every_candidate(Colliding(), 1)[0]
    crystals, error, *_ = choose(Colliding(), 12)
    assert error.isfinite().all()
    assert crystals.lattice.abs().max() < 100
    alone, error, *_ = choose(Colliding(), 1)
    assert torch.isinf(error).all()
    assert torch.equal(alone.lattice[0], first.lattice[0])


def rock_salt_with(contact, crowded_seeds):
    """A model whose crystals are LiF with the atoms `contact` Å apart for these seeds, else 2.0."""

    class RockSalt(FakeModel):
        def _crystal(self, numbers, seed):
            apart = contact[crowded_seeds.index(seed)] if seed in crowded_seeds else 2.0
            frac = torch.tensor([[0.0, 0, 0], [apart / 4, 0, 0]])
            return Crystals(4.0 * torch.eye(3)[None], frac, numbers, torch.tensor([2]))

    return RockSalt()


@pytest.mark.parametrize(
    ("contact", "kept"),
    [
        ([1.0], 2.0),  # 0.53 of the sum of covalent radii, 1.28 + 0.57 Å: made again
        ([1.2], 1.2),  # 0.65: kept
        ([1.0, 0.9, 1.05, 0.95, 0.4], 1.05),  # no try has room: the one with the most
    ],
)
def test_atoms_that_symmetry_has_brought_too_near_each_other_are_made_again(contact, kept):
    seeds = [candidate_seed(1, number) for number in range(len(contact))]
    skeleton = WeightedSkeleton(Skeleton(1, ((3, 0), (9, 0))), 1.0)
    made = choose_crystals(
        rock_salt_with(contact, seeds),
        torch.tensor([3, 9]),
        torch.tensor([2]),
        seeds=[1],
        sampler=SamplerConfig(steps=3),
        candidates=1,
        skeletons=[[skeleton]],
    )
    assert crystals_to_atoms(made.crystals)[0].get_distance(0, 1, mic=True) == pytest.approx(kept)
    assert made.skeleton == [skeleton]


def test_trajectories_are_those_of_the_crystals_that_were_kept():
    class Numbered(FakeModel):
        """Lattices that say which candidate and which step they are of."""

        def sample(
            self, atomic_numbers, n_atoms, *, seeds, sampler, start=None, groups=None, on_step=None
        ):
            for step in range(1, sampler.steps + 1):
                marks = [50.0 if start is not None else self.number(seed) for seed in seeds]
                scale = torch.tensor(marks)[:, None, None] + step
                made = self.plain(atomic_numbers, n_atoms).with_geometry(
                    scale * torch.eye(3).repeat(len(n_atoms), 1, 1), torch.rand(5, 3)
                )
                on_step(step, sampler.steps, made)
            return made

        def number(self, seed):
            found = [(s, k) for s in (1, 2) for k in range(3) if candidate_seed(s, k) == seed]
            return 100.0 + 10 * found[0][1]

        def plain(self, atomic_numbers, n_atoms):
            return super().sample(atomic_numbers, n_atoms, seeds=[1, 2], sampler=PLAN.sampler)

        def score(self, crystals):
            """The last candidate of the first crystal is best, the first of the second."""
            at = crystals.lattice[:, 0, 0]
            return torch.where(torch.arange(len(at)) == 0, -at, at)

    steps = choose(Numbered(), 3, keep_trajectory=True).steps
    ends = [50.0 + n for n in range(1, FINAL_REFINEMENT_STEPS + 1)]
    assert [float(step.lattice[0, 0, 0]) for step in steps] == [121, 122, 123, *ends]
    assert [float(step.lattice[1, 0, 0]) for step in steps] == [101, 102, 103, *ends]


@pytest.mark.parametrize("together", [0, 3, 4, 100])
def test_candidates_made_at_a_time_change_nothing_but_the_time(together):
    alone, grouped = (
        choose(FakeModel(), 10, together=n, keep_trajectory=True) for n in (1, together)
    )
    assert torch.equal(alone.error, grouped.error)
    for one, other in zip(
        (alone.crystals, *alone.steps), (grouped.crystals, *grouped.steps), strict=True
    ):
        assert torch.equal(one.lattice, other.lattice)
        assert torch.equal(one.frac_coords, other.frac_coords)
    counted = []
    choose(FakeModel(), 10, together=together, on_step=lambda *step: counted.append(step))
    assert counted[-1] == (10 * 3 + FINAL_REFINEMENT_STEPS,) * 2
    assert len(counted) == 3 * -(-10 // max(together, 1)) + FINAL_REFINEMENT_STEPS


def test_progress_counts_the_steps_of_all_candidates():
    seen = []
    choose(FakeModel(), 4, on_step=lambda *step: seen.append(step))
    total = 4 * 3 + FINAL_REFINEMENT_STEPS
    assert seen == [(step, total) for step in range(1, total + 1)]


# Workers


def test_workers_make_the_crystals_that_one_process_makes(checkpoint):
    model = crystorus.load(checkpoint)
    plan = replace(PLAN, batch_atoms=12, keep_trajectory=True)
    requests = make_requests([LIFEO2, SRTIO3], n=3)
    here = sampling.GeneratedCrystals.concat(list(make(model, requests, plan)))
    there = sampling.GeneratedCrystals.concat(
        list(make(model, requests, plan, workers=Workers(2), checkpoint=checkpoint))
    )
    assert [r.index for r in there.requests] == list(range(6))
    torch.testing.assert_close(here.crystals.lattice, there.crystals.lattice, atol=1e-3, rtol=1e-4)
    assert len(there.trajectory) == 3


def _kill_itself(job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_one_sentence(checkpoint, monkeypatch):
    monkeypatch.setattr(sampling, "_make_in_worker", _kill_itself)
    made = make(FakeModel(), REQUESTS[:2], PLAN, workers=Workers(2), checkpoint=checkpoint)
    with pytest.raises(GenerationError, match=r"died.*fewer --workers"):
        list(made)
