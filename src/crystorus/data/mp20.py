"""MP-20 from its public source, the CDVAE release."""

import csv
import json
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from crystorus.data.arrays import ReadingError
from crystorus.data.download import DownloadError, download
from crystorus.data.files import file_digest
from crystorus.data.sources import csv_records


def get_mp20(
    folder: Path,
    *,
    splits: Sequence[str] = ("train", "val"),
    base_url: str | None = None,
    digests: dict[str, str] | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> list[Path]:
    """Download splits of MP-20 into a folder, each resumed, checked and then named.

    The release publishes no digests and none are known here. So every file is checked for its
    columns and its number of rows, which are known, and its SHA-256 is recorded beside it as
    NAME.sha256 when it first arrives; a later download of the same file, and a file that is
    already there, must match that record. Digests given in `digests` are required at once.

    Args:
        folder: Where the files go: train.csv, val.csv, test.csv.
        splits: Of train, val and test. The test split comes only when asked for.
        base_url: Another copy of the release.
        digests: SHA-256 by split, if known from elsewhere.
        progress: Called with (file name, bytes so far, bytes in all if known).
        pause: Waits for so many seconds between attempts.

    Returns:
        The files, in the order of `splits`.

    Raises:
        DownloadError: If a file cannot be had, is not MP-20, or differs from its digest; the
            message says which and what to do.

    Source: Xie et al., Crystal diffusion variational autoencoder (2022); Materials Project,
    CC BY 4.0.
    """
    release = json.loads(resources.files("crystorus.data").joinpath("mp20.json").read_text())
    unknown = [s for s in splits if s not in release["splits"]]
    if unknown:
        raise DownloadError(
            f"MP-20 has no split {unknown[0]!r}: choose from {', '.join(release['splits'])}"
        )
    base = (base_url or release["base"]).rstrip("/")
    return [
        _get_split(
            f"{base}/{release['splits'][split]['file']}",
            folder,
            release["splits"][split] | {"columns": release["columns"]},
            (digests or {}).get(split),
            progress,
            pause,
        )
        for split in splits
    ]


def _get_split(
    url: str,
    folder: Path,
    known: dict[str, Any],
    digest: str | None,
    progress: Callable[[str, int, int | None], None] | None,
    pause: Callable[[float], None],
) -> Path:
    name = known["file"]
    path, record = folder / name, folder / f"{name}.sha256"
    words = record.read_text(errors="replace").split() if record.exists() else []
    recorded = words[0] if words else None
    wanted = digest or known["sha256"] or recorded
    if path.exists():
        found = file_digest(path)
        if wanted is not None and found != wanted:
            raise DownloadError(
                f"{path} has the SHA-256 {found} and not {wanted}: it was changed, delete it to "
                "download it again"
            )
        if wanted is None:
            try:
                _check_table(path, known["columns"], known["rows"])
            except (ReadingError, DownloadError) as error:
                raise DownloadError(
                    f"{path} is not MP-20: {error}; delete it or choose another folder"
                ) from error
    else:
        report = None if progress is None else lambda done, total: progress(name, done, total)
        arriving = folder / f".{name}.unchecked"
        found = download(url, arriving, sha256=wanted, progress=report, pause=pause)
        try:
            _check_table(arriving, known["columns"], known["rows"])
        except (ReadingError, DownloadError) as error:
            arriving.unlink()
            raise DownloadError(f"{url} is not MP-20: {error}; nothing was kept") from error
        arriving.replace(path)
    record.write_text(f"{found}  {name}\n")
    return path


def _check_table(path: Path, columns: Sequence[str], n_rows: int) -> None:
    with path.open(encoding="utf-8", newline="") as stream:
        header = next(csv.reader(stream), [])
    missing = [c for c in columns if c not in header]
    if missing:
        raise DownloadError(f"it has no column {missing[0]!r}")
    found = sum(1 for _ in csv_records(path))
    if found != n_rows:
        raise DownloadError(f"it has {found} rows and not {n_rows}")
