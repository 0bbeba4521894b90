"""Seeds give the crystals, and noise the losses, that they gave when they were recorded."""

import json

import pytest
import torch
from characterisation.recorded import NUMBERS, measure

RECORDED = json.loads(NUMBERS.read_text())


@pytest.fixture(scope="module")
def measured():
    return measure()


@pytest.mark.parametrize("case", list(RECORDED))
def test_numbers_are_those_recorded(measured, case):
    # Trajectories from noise and scores are in float32, whose rounding steps amplify.
    single = "noise" in case or "error" in case
    for kind, expected in RECORDED[case].items():
        found, wanted = torch.tensor(measured[case][kind]), torch.tensor(expected)
        difference = found - wanted
        if kind == "frac":
            difference -= difference.round()
        limit = (5e-4 if single else 1e-6) * wanted.abs().max()
        assert difference.abs().max() < limit, kind


def test_the_comparison_can_fail(measured):
    """Another seed's crystal is none of those recorded."""
    bridge, ode = (measured[f"default {name} from noise"]["gram"] for name in ("bridge", "ode"))
    assert max(abs(a - b) for a, b in zip(bridge, ode, strict=True)) > 1
