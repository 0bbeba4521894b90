"""Files from the network: resumed where they broke off, checked before they are believed."""

import http.client
import json
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crystorus.data.files import file_digest

CHUNK = 1 << 16
TIMEOUT = 30.0  # seconds without a byte
LONGEST_PAUSE = 30.0
_RETRIED = (408, 425, 429, 500, 502, 503, 504)

Progress = Callable[[int, int | None], None]


class DownloadError(RuntimeError):
    """A file that could not be had, or is not what it should be."""


class _InterruptionError(Exception):
    """The connection failed in a way that another try may mend."""


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
    attempts: int = 6,
    pause: Callable[[float], None] = time.sleep,
) -> str:
    """Fetch a file, going on from what an earlier call left, and return its SHA-256.

    The file appears under its name only when complete and, if a digest is given, proven. What
    has arrived waits beside it as `.NAME.part`. A server that cannot resume, or whose file has
    changed since, makes the download start again. Attempts are counted from the last progress;
    the pauses between them double from 1 s.

    Args:
        url: http or https.
        path: Where the file goes.
        sha256: The digest it must have.
        progress: Called with (bytes so far, bytes in all if the server said).
        attempts: Failures in a row without a new byte before giving up.
        pause: Waits for so many seconds.

    Raises:
        DownloadError: If the server refuses, the connection keeps failing, the disk is too
            small, or the digest is wrong; in the last case nothing is kept.
        OSError: If the file cannot be written.
    """
    if not url.startswith(("https://", "http://")):
        raise DownloadError(f"{url!r} is no address: give one that starts with https://")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _Partial.beside(path)
    _fetch_all(url, partial, progress, attempts, pause)
    digest = file_digest(partial.data)
    if sha256 is not None and digest != sha256 and partial.resumed():
        # The beginning may be of another version: once more, from nothing.
        partial.discard()
        _fetch_all(url, partial, progress, attempts, pause)
        digest = file_digest(partial.data)
    if sha256 is not None and digest != sha256:
        partial.discard()
        raise DownloadError(
            f"{url} has the SHA-256 {digest} and not {sha256}: it was altered on the way or "
            "replaced, nothing was kept"
        )
    partial.publish(path)
    return digest


@dataclass(frozen=True)
class _Partial:
    """What has arrived so far, and what the server said of it."""

    data: Path
    notes: Path

    @classmethod
    def beside(cls, path: Path) -> "_Partial":
        return cls(path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.part.json"))

    def size(self) -> int:
        return self.data.stat().st_size if self.data.exists() else 0

    def said(self) -> dict[str, Any]:
        try:
            said = json.loads(self.notes.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) else {}

    def resumed(self) -> bool:
        return bool(self.said().get("resumed"))

    def note(self, url: str, answer: http.client.HTTPResponse, total: int | None) -> None:
        resumed = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        notes = {"url": url, "tag": _tag(answer), "total": total, "resumed": resumed}
        self.notes.write_text(json.dumps(notes), encoding="utf-8")

    def discard(self) -> None:
        self.data.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)

    def publish(self, path: Path) -> None:
        with self.data.open("rb") as stream:
            os.fsync(stream.fileno())
        self.data.replace(path)
        self.notes.unlink(missing_ok=True)


def _fetch_all(
    url: str,
    partial: _Partial,
    progress: Progress | None,
    attempts: int,
    pause: Callable[[float], None],
) -> None:
    failures, before = 0, partial.size()
    while True:
        try:
            _fetch_once(url, partial, progress)
            return
        except _InterruptionError as error:
            failures = 1 if partial.size() > before else failures + 1
            before = partial.size()
            if failures >= attempts:
                raise DownloadError(
                    f"{url} failed {failures} times in a row ({error}): check the connection and "
                    f"run the same command again, it goes on from {before} bytes"
                ) from error
            pause(min(2.0 ** (failures - 1), LONGEST_PAUSE))


def _fetch_once(url: str, partial: _Partial, progress: Progress | None) -> None:
    """Make one request and store what comes; raise `_InterruptionError` if it ends too early."""
    answer = _open(url, partial)
    if answer is None:
        return
    with answer:
        start, total = _span(answer, partial)
        _check_space(partial.data, None if total is None else total - start)
        partial.note(url, answer, total)
        with partial.data.open("r+b" if partial.data.exists() else "wb") as stream:
            stream.truncate(start)
            stream.seek(start)
            done = start
            while piece := _read(answer):
                stream.write(piece)
                done += len(piece)
                if progress is not None:
                    progress(done, total)
    if total is not None and done < total:
        raise _InterruptionError(f"the connection closed after {done} of {total} bytes")
    if total is not None and done > total:
        partial.discard()
        raise _InterruptionError(f"{done} bytes came where {total} were announced")


def _open(url: str, partial: _Partial) -> http.client.HTTPResponse | None:
    """Ask for what is missing; None if nothing is."""
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    said, size = partial.said(), partial.size()
    if size and said.get("url") == url:
        if said.get("total") == size:
            return None
        request.add_header("Range", f"bytes={size}-")
        if said.get("tag"):
            request.add_header("If-Range", said["tag"])
    else:
        partial.discard()
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            partial.discard()
            raise _InterruptionError("the server has less than was already there") from error
        if error.code in _RETRIED:
            raise _InterruptionError(f"the server answers {error.code} {error.reason}") from error
        raise DownloadError(
            f"{url}: the server answers {error.code} {error.reason}; check the address"
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise _InterruptionError(str(getattr(error, "reason", error))) from error


def _span(answer: http.client.HTTPResponse, partial: _Partial) -> tuple[int, int | None]:
    """Return where the answer starts, and how long the whole file is."""
    length = answer.headers.get("Content-Length")
    if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
        return 0, int(length) if length and length.isdigit() else None
    unit, _, span = answer.headers.get("Content-Range", "").partition(" ")
    first, _, total = span.partition("-")[0], None, span.rpartition("/")[2]
    size = partial.size()
    known = partial.said().get("total")
    if unit != "bytes" or first != str(size) or (known and total not in (str(known), "*")):
        partial.discard()
        raise _InterruptionError(f"the server resumes at {span!r} where {size} was asked for")
    return size, int(total) if total.isdigit() else known


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read(CHUNK)
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _InterruptionError(str(error) or type(error).__name__) from error


def _tag(answer: http.client.HTTPResponse) -> str | None:
    tag = answer.headers.get("ETag")
    # A weak tag does not promise equal bytes and must not be used in If-Range.
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")


def _check_space(file: Path, needed: int | None) -> None:
    free = shutil.disk_usage(file.parent).free
    if needed is not None and needed > free:
        raise DownloadError(
            f"{file.parent} has {free / 1e6:.0f} MB free and {needed / 1e6:.0f} MB are needed: "
            "make room or choose another folder"
        )
