"""Results to JSON and back, by the types their dataclasses declare."""

import dataclasses
import types
import typing
from typing import Any, TypeVar

JSON = dict[str, Any]
Result = TypeVar("Result")


class RecordError(ValueError):
    """A file of results that does not hold what it should."""


def to_json(result: Any) -> JSON:
    """Return a dataclass of plain values, tuples, mappings and other such dataclasses as JSON."""
    return {
        item.name: _plain(getattr(result, item.name)) for item in dataclasses.fields(type(result))
    }


def from_json(kind: type[Result], tree: JSON) -> Result:
    """Build a dataclass from what `to_json` made of one.

    Raises:
        RecordError: If a field is missing, unknown or of another type.
    """
    hints = typing.get_type_hints(kind)
    if not isinstance(tree, dict) or set(tree) != set(hints):
        found = ", ".join(tree) if isinstance(tree, dict) else repr(tree)[:60]
        raise RecordError(
            f"a {kind.__name__} has {', '.join(hints)}, the file has {found or 'nothing'}: measure "
            "again, or use the version that wrote it"
        )
    return kind(**{name: _typed(hint, tree[name], name) for name, hint in hints.items()})


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


def _typed(hint: Any, value: Any, name: str) -> Any:
    """Return `value` as the type `hint`."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_json(hint, value)
    if origin is types.UnionType:
        return None if value is None else _typed(inner[0], value, name)
    if origin is tuple and isinstance(value, list):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) == len(value):
            return tuple(_typed(k, v, name) for k, v in zip(kinds, value, strict=True))
    elif origin is dict and isinstance(value, dict):
        return {_key(inner[0], k): _typed(inner[1], v, name) for k, v in value.items()}
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif origin is None and type(value) is hint:
        return value
    raise RecordError(f"{name} = {str(value)[:60]} is no {hint}: measure again")


def _key(kind: type, text: str) -> Any:
    return kind(text)
