"""Known phases from the Materials Project, through pymatgen's client and the user's key."""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests
from pymatgen.ext.matproj import MPRester, MPRestError

from crystorus.data.files import write_whole
from crystorus.hull.errors import ReferencesError

KEY_VARIABLES = ("MP_API_KEY", "PMG_MAPI_KEY")
ENDPOINT_VARIABLE = "MP_API_ENDPOINT"
ENDPOINT = "https://api.materialsproject.org/"
FIELDS = ("material_id", "formula_pretty", "energy_per_atom", "structure", "deprecated")
_KEY_LENGTH = 32


def fetch_summaries(elements: Sequence[str], cache: Path) -> list[dict[str, Any]]:
    """Return the summary documents of all phases of a chemical system.

    What the server answers is kept in `cache`, so that a resumed campaign compares with the same
    phases and needs no network.

    Args:
        elements: Symbols.
        cache: A JSON file.

    Raises:
        ReferencesError: If there is no key, it is refused, or the server cannot be reached.
    """
    if cache.is_file():
        try:
            return list(json.loads(cache.read_text(encoding="utf-8"))["data"])
        except (ValueError, KeyError, TypeError) as error:
            raise ReferencesError(
                f"{cache} is damaged ({error}): delete it to ask the Materials Project again"
            ) from error
    documents = _ask(_key(), systems_within(elements))
    live = [one for one in documents if not one.get("deprecated")]
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_whole(cache, json.dumps({"elements": sorted(elements), "data": live}))
    return live


def systems_within(elements: Sequence[str]) -> list[str]:
    """Return the chemical system and all within it, as the Materials Project spells them."""
    return [
        "-".join(sorted(some))
        for size in range(1, len(elements) + 1)
        for some in itertools.combinations(sorted(elements), size)
    ]


def _key() -> str:
    key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), "")
    if not key:
        raise ReferencesError(
            f"the Materials Project wants a key and {KEY_VARIABLES[0]} is not set: get one at "
            "https://next-gen.materialsproject.org/api and set it in the environment"
        )
    if len(key) != _KEY_LENGTH:
        raise ReferencesError(
            f"the key in {KEY_VARIABLES[0]} has {len(key)} characters: the Materials Project's "
            f"have {_KEY_LENGTH}, copy it again"
        )
    return key


def _ask(key: str, systems: Sequence[str]) -> list[dict[str, Any]]:
    endpoint = os.environ.get(ENDPOINT_VARIABLE, ENDPOINT)
    try:
        with MPRester(key) as rester:
            rester.preamble = endpoint.rstrip("/") + "/"
            return rester.request(
                f"materials/summary/?_fields={','.join(FIELDS)}&_all_fields=False",
                payload={"chemsys": ",".join(systems), "deprecated": "false"},
                mp_decode=False,
            )
    except (MPRestError, requests.RequestException) as error:
        raise ReferencesError(_trouble(endpoint, str(error))) from error


def _trouble(endpoint: str, text: str) -> str:
    if "status code 401" in text or "status code 403" in text:
        return (
            f"{endpoint} refuses the key in {KEY_VARIABLES[0]}: copy it again from "
            "https://next-gen.materialsproject.org/api"
        )
    if "status code 429" in text:
        return f"{endpoint} asks for a pause, too many requests: try again in a minute"
    return (
        f"{endpoint} did not answer ({text.splitlines()[0][:120]}): check the network, or take "
        "references from a file"
    )
