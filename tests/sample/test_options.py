"""Values and combinations of options that make no sense are refused where they are written."""

import math

import pytest

from crystorus.errors import RequestError
from crystorus.sample.options import RefineOptions, SampleOptions, parse_units


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"n": 0}, "0 crystals"),
        ({"seed": -1}, "seed is -1"),
        ({"symprec": math.nan}, "--symprec is nan"),
        ({"symprec": -0.1}, "--symprec is -0.1"),
        ({"symprec": math.inf}, "--symprec is inf"),
        ({"batch_atoms": 0}, "--batch-atoms is 0"),
        ({"workers": 0}, "--workers is 0"),
        ({"workers": 2, "device": "cuda"}, "--device cpu"),
        ({"z": (1, 0)}, "'0' formula units"),
        ({"candidates": 0}, "0 candidates.*1 to 1000"),
        ({"candidates": 1001}, "1001 candidates.*1 to 1000"),
        ({"steps": 0}, "0 steps"),
        ({"anti_annealing": math.nan}, "--anti-annealing is nan"),
        ({"anti_annealing": -1.0}, "--anti-annealing is -1.0: give a finite number from 0 up"),
        ({"quality": "fast", "steps": 5}, "--quality fast is a sampler with its steps"),
        ({"level": 0.5}, "--level says nothing about --start noise"),
        ({"start": "templates", "level": math.nan}, "--level is nan"),
        ({"start": "templates", "level": 1.5}, "--level is 1.5: give a fraction"),
        ({"start": "templates", "level": 0, "noised": True}, "substitution alone"),
        ({"start": "templates", "sampler": "bridge"}, "adds noise"),
        ({"new_only": True}, "nothing to compare with"),
    ],
)
def test_what_makes_no_sense_is_refused_with_value_and_remedy(values, words):
    with pytest.raises(RequestError, match=words):
        SampleOptions(**values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"level": 0}, "--level is 0"),
        ({"level": math.nan}, "--level is nan"),
        ({"n": 2}, "add --noised"),
        ({"hold": ","}, "--hold is empty"),
    ],
)
def test_the_same_of_refining(values, words):
    with pytest.raises(RequestError, match=words):
        RefineOptions(**values)


def test_units_are_taken_as_number_text_or_several():
    kinds = [2, "1, 2", [1, 2], (1, 2)]
    assert [parse_units(z) for z in kinds] == [(2,), (1, 2), (1, 2), (1, 2)]
    for wrong in ("two", "1,-2", "", [], 0, 1.5):
        with pytest.raises(RequestError, match="whole numbers from 1 up"):
            parse_units(",".join([str(wrong)]) if isinstance(wrong, float) else wrong)


def test_a_library_means_templates_unless_it_only_compares(tmp_path):
    assert SampleOptions().start_from == "noise"
    assert SampleOptions(library=tmp_path).start_from == "templates"
    compared = SampleOptions(library=tmp_path, start="noise", new_only=True)
    assert compared.needs_library
