"""Files from the network, verified against their SHA-256 before use."""

import time
from collections.abc import Callable
from pathlib import Path

from crystal_fidelity.errors import FidelityError
from crystal_fidelity.files import atomic_path, disk_errors, file_digest

Progress = Callable[[int, int | None], None]
_TIMEOUT_S = 30.0
_PAUSES_S = (1.0, 4.0)
"""Waited between attempts; a refusal by the server is final."""


class DownloadError(FidelityError):
    """A file that could not be had, or is not what it should be."""


def fetch(
    url: str,
    path: str | Path,
    sha256: str | None = None,
    *,
    progress: Progress | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> str:
    """Download a file and return its SHA-256; it appears under its name only when verified.

    Args:
        url: http or https.
        path: Where the file goes; its folder is made.
        sha256: The digest it must have, where one is known.
        progress: Called with (bytes so far, bytes in all if the server said).
        pause: Waits for so many seconds between attempts.

    Raises:
        DownloadError: If the file cannot be had or its digest is wrong; nothing is kept.
        FileError: If it cannot be written.
    """
    import requests

    if not url.startswith(("https://", "http://")):
        raise DownloadError(f"{url!r} is no address: give one that starts with https://")
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as aside:
            for wait_s in (*_PAUSES_S, None):
                try:
                    with (
                        requests.get(url, stream=True, timeout=_TIMEOUT_S) as answer,
                        aside.open("wb") as file,
                    ):
                        answer.raise_for_status()
                        total = int(answer.headers.get("content-length", 0)) or None
                        for chunk in answer.iter_content(1 << 16):
                            file.write(chunk)
                            if progress is not None:
                                progress(file.tell(), total)
                    break
                except requests.RequestException as error:
                    refused = isinstance(error, requests.HTTPError) and (
                        error.response.status_code < 500 and error.response.status_code != 429
                    )
                    if refused or wait_s is None:
                        raise DownloadError(
                            f"{url} cannot be downloaded ({_reason(error)}): check the connection "
                            f"and the address, or fetch it otherwise and save it as {path}"
                        ) from error
                    pause(wait_s)
            digest = file_digest(aside)
            if sha256 is not None and digest != sha256.lower():
                raise DownloadError(
                    f"{url} has the SHA-256 {digest} and not {sha256}: it was altered on the way "
                    "or replaced, nothing was kept"
                )
    return digest


def _reason(error: Exception) -> str:
    """Return the innermost reason, the part of a nested network error that says something."""
    inner = getattr(error, "response", None)
    if inner is not None:
        return f"the server answers {inner.status_code} {inner.reason}"
    text = str(error)
    known = {
        "Name or service not known": "no network, or no such server",
        "name resolution": "no network, or no such server",
        "NameResolutionError": "no network, or no such server",
        "refused": "connection refused",
        "timed out": "no answer in time",
        "IncompleteRead": "the connection broke off",
    }
    return next((said for key, said in known.items() if key in text), text[:120])
