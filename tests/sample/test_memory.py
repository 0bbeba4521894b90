import pytest
import torch
from fake_model import FakeModel

from crystorus.data.compositions import Composition
from crystorus.sample.errors import GenerationError
from crystorus.sample.memory import FittingBatches, is_out_of_memory
from crystorus.sample.plan import make_requests, padded_atoms
from crystorus.sample.walks import Walks

REQUESTS = make_requests([Composition.of((3, 26, 8, 8))], n=13)


def run(model, requests=REQUESTS):
    sampler = model.config.sampling
    batches = FittingBatches(Walks(model, sampler).make)
    return batches, list(batches.run(requests))


def test_batches_are_halved_until_they_fit_and_nothing_is_lost():
    model = FakeModel(memory_atoms=8)
    batches, made = run(model)
    assert [r.index for part, _ in made for r in part] == list(range(13))
    assert all(padded_atoms(part) <= 8 for part, _ in made)
    assert batches.limit is not None
    _, whole = run(FakeModel())
    together = torch.cat([walked.crystals.frac_coords for _, walked in made])
    assert torch.equal(together, whole[0][1].crystals.frac_coords)


def test_what_did_not_fit_is_not_tried_again():
    model = FakeModel(memory_atoms=8)
    failures = 0

    def make(batch):
        nonlocal failures
        failures += padded_atoms(batch) > 8
        return Walks(model, model.config.sampling).make(batch)

    batches = FittingBatches(make)
    list(batches.run(REQUESTS))
    once = failures
    list(batches.run(REQUESTS))
    assert failures == once > 0


def test_a_single_crystal_that_does_not_fit_ends_the_run_with_a_remedy():
    with pytest.raises(GenerationError, match=r"single crystal of 4 atoms.*--device"):
        run(FakeModel(memory_atoms=3))


@pytest.mark.parametrize("failure", [RuntimeError("shape mismatch"), ValueError("no"), OSError(5)])
def test_other_errors_are_not_swallowed(failure):
    with pytest.raises(type(failure)):
        run(FakeModel(failure=failure))


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
