"""Results survive JSON, and what is no result is refused with its name."""

import json
from dataclasses import dataclass

import pytest

from crystorus.reproduction.records import RecordError, from_json, to_json


@dataclass(frozen=True)
class Inner:
    values: tuple[float, ...]
    pair: tuple[float, float]


@dataclass(frozen=True)
class Outer:
    name: str
    count: int
    perhaps: tuple[float | None, ...]
    shares: dict[int, float]
    parts: tuple[Inner, ...]


RESULT = Outer("a", 3, (1.5, None), {2: 0.25}, (Inner((1.0,), (0.0, 2.0)), Inner((), (1.0, 1.0))))


def test_a_result_survives_json():
    again = from_json(Outer, json.loads(json.dumps(to_json(RESULT), allow_nan=False)))
    assert again == RESULT
    assert type(again.shares) is dict
    assert type(again.parts[0]) is Inner


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": "3"}, "count = 3"),
        ({"count": True}, "count = True"),
        ({"perhaps": ["x"]}, "perhaps = x"),
        ({"parts": [{"values": [], "pair": [1.0]}]}, "pair"),
        ({"parts": 4}, "parts = 4"),
        ({"more": 1}, "a Outer has"),
    ],
)
def test_what_is_no_result_is_refused(change, message):
    with pytest.raises(RecordError, match=message):
        from_json(Outer, to_json(RESULT) | change)
