"""MP-20 from its public source, the CDVAE release, or from a copy on disk."""

import csv
import json
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from crystal_fidelity.download import DownloadError, fetch
from crystal_fidelity.files import atomic_path, disk_errors, file_digest, write_atomic


def get_mp20(
    folder: Path,
    *,
    splits: Sequence[str] = ("train", "val"),
    base_url: str | None = None,
    source: Path | None = None,
    digests: dict[str, str] | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> list[Path]:
    """Put splits of MP-20 into a folder, each verified before it has its name there.

    The release publishes no digests and none are known here. So every file is checked for its
    columns and its number of rows, which are known, and its SHA-256 is recorded beside it as
    NAME.sha256 when it first arrives; a later download of the same file, and a file that is
    already there, must match that record. Digests given in `digests` are required at once.

    Args:
        folder: Where the files go: train.csv, val.csv, test.csv.
        splits: Of train, val and test. The test split comes only when asked for.
        base_url: Another copy of the release.
        source: A copy on disk instead: the file of the one split asked for, or a folder with
            train.csv, val.csv, test.csv.
        digests: SHA-256 by split, if known from elsewhere.
        progress: Called with (file name, bytes so far, bytes in all if known).
        pause: Waits for so many seconds between attempts.

    Returns:
        The files, in the order of `splits`.

    Raises:
        DownloadError: If a file cannot be had, is not MP-20, or differs from its digest; the
            message says which and what to do.
        FileError: If a file cannot be written.

    Source: Xie et al., Crystal diffusion variational autoencoder (2022); Materials Project,
    CC BY 4.0.
    """
    release = json.loads(resources.files("crystorus.data").joinpath("mp20.json").read_text())
    unknown = [split for split in splits if split not in release["splits"]]
    if unknown:
        raise DownloadError(
            f"MP-20 has no split {unknown[0]!r}: choose from {', '.join(release['splits'])}"
        )
    if source is not None and not source.exists():
        raise DownloadError(f"{source} does not exist: name a file of MP-20 or a folder of them")
    if source is not None and not source.is_dir() and len(splits) != 1:
        raise DownloadError(
            f"{source} is one file for {len(splits)} splits: name a folder with "
            f"{', '.join(release['splits'][s]['file'] for s in splits)}, or one --split"
        )
    base = (base_url or release["base"]).rstrip("/")
    files = []
    for split in splits:
        known = release["splits"][split]
        origin: str | Path = f"{base}/{known['file']}"
        if source is not None:
            origin = source / known["file"] if source.is_dir() else source
        path, record = folder / known["file"], folder / f"{known['file']}.sha256"
        words = record.read_text(errors="replace").split() if record.exists() else []
        wanted = (digests or {}).get(split) or known["sha256"] or (words[0] if words else None)
        if path.exists():
            digest = file_digest(path)
            if wanted is not None and digest != wanted:
                raise DownloadError(
                    f"{path} has the SHA-256 {digest} and not {wanted}: it was changed, delete it "
                    "to get it again"
                )
            if wanted is None:
                fault = _fault(path, release["columns"], known["rows"])
                if fault:
                    raise DownloadError(
                        f"{path} is not MP-20: {fault}; delete it or choose another folder"
                    )
        else:
            report = None if progress is None else partial(progress, known["file"])
            if isinstance(origin, Path):
                digest = _copy(origin, path, wanted)
            else:
                digest = fetch(origin, path, wanted, progress=report, pause=pause)
            fault = "" if wanted else _fault(path, release["columns"], known["rows"])
            if fault:
                path.unlink()
                raise DownloadError(f"{origin} is not MP-20: {fault}; nothing was kept")
        with disk_errors(record):
            write_atomic(record, f"{digest}  {known['file']}\n")
        files.append(path)
    return files


def _copy(origin: Path, path: Path, wanted: str | None) -> str:
    if not origin.is_file():
        raise DownloadError(f"{origin} does not exist: name a file of MP-20 or a folder of them")
    digest = file_digest(origin)
    if wanted is not None and digest != wanted:
        raise DownloadError(
            f"{origin} has the SHA-256 {digest} and not {wanted}: it was altered or replaced, "
            "nothing was kept"
        )
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as aside:
            shutil.copyfile(origin, aside)
    return digest


def _fault(path: Path, columns: Sequence[str], n_rows: int) -> str:
    """Return what shows that a file is no table of MP-20, or nothing."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows: Any = csv.reader(stream, strict=True)
            header: list[str] = next(rows, [])
            missing = [column for column in columns if column not in header]
            if missing:
                return f"it has no column {missing[0]!r}"
            found = sum(1 for row in rows if row)
    except (csv.Error, UnicodeDecodeError) as error:
        return f"it is cut short or no table ({error})"
    return "" if found == n_rows else f"it has {found} rows and not {n_rows}"
