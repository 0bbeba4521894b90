"""Claim, lock and resume the output folder of a run.

`run.json` says what the folder holds: the kind of run, its settings, the programs it was begun
with and its status. It is written before anything else, so that a kill at any instant leaves a
folder that the same command goes on with, and another command refuses.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from crystal_fidelity.files import FileError, disk_errors, remove_asides, write_atomic
from crystorus.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows has no file locks of this kind: two writers are not noticed there
    fcntl = None  # type: ignore[assignment]

RUN = "run.json"
RUNNING, INTERRUPTED, COMPLETE = "running", "interrupted", "complete"
REMEDY, REPLACE = "choose another --out", ", or --overwrite to replace it"
"""What a command with these options can do about a folder that is taken."""
_OLD_SCORER = "judging.json"
"""Where the settings of a scorer training were before `run.json` held those of every run."""


class RunFolder:
    """The folder of one run, locked; use it as a context manager, made by `claim`.

    Attributes:
        path: The folder.
        settings: What the run is.
        versions: The programs that the run was begun with.
        facts: What else was noted in `run.json`.
        resumed: Whether the run was already there.
        complete: Whether it is finished.
    """

    def __init__(self, path: Path, kind: str, settings: Mapping[str, Any], lock: int) -> None:
        """See `claim`."""
        self.path = path
        self.kind = kind
        self.settings = dict(settings)
        self.versions: dict[str, str] = {}
        self.facts: dict[str, Any] = {}
        self.resumed = False
        self.complete = False
        self._lock = lock

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *raised: Any) -> None:
        try:
            if not self.complete:
                self._write(INTERRUPTED)
        except FileError:
            if not any(raised):
                raise
        finally:
            os.close(self._lock)

    def note(self, **facts: Any) -> None:
        """Keep facts about the run, in JSON's types, in `run.json`.

        Args:
            facts: By name.

        Raises:
            FileError: If the disk refuses.
        """
        self.facts |= facts
        self._write(COMPLETE if self.complete else RUNNING)

    def reopen(self) -> None:
        """Mark a finished run as running again: there is more to do in it."""
        self.complete = False
        self._write(RUNNING)

    def finish(self) -> None:
        """Mark the run complete, once all its files are on disk."""
        self._write(COMPLETE)
        self.complete = True

    def changed_versions(self, now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
        """Return the programs that are not those of the beginning, as (then, now) by name.

        Args:
            now: Version by name of the program.
        """
        return {
            name: (then, now.get(name, "not installed"))
            for name, then in self.versions.items()
            if now.get(name) != then
        }

    def _write(self, status: str) -> None:
        record = {"kind": self.kind, "status": status, "settings": self.settings}
        record |= {"versions": self.versions} | ({"facts": self.facts} if self.facts else {})
        with disk_errors(self.path, remedy=REMEDY):
            text = json.dumps(record, indent=2, ensure_ascii=False)
            write_atomic(self.path / RUN, text + "\n")


def claim(
    path: Path,
    kind: str,
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
    resume: bool | None = None,
    versions: Mapping[str, str] | None = None,
    names: Iterable[str] = (),
    may_change: Collection[str] = (),
    adapt: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    recorded: Mapping[str, Any] | None = None,
    remedy: str = REMEDY,
    replace: str = REPLACE,
) -> RunFolder:
    """Open or create the folder of a run, locked against a second one, or refuse it.

    Args:
        path: The folder.
        kind: What kind of run it is, such as "sample".
        settings: What decides its results, in JSON's types: a folder made with others is refused.
            Nested settings are compared and named with dots.
        overwrite: Replace another run of the same kind, its `names`, instead of refusing it.
        resume: Whether a run that is already there goes on: None for yes, False to refuse it,
            True to insist that there is one.
        versions: With which programs it is made: recorded, not compared.
        names: The files and folders that a run of this kind writes; if one is there without a
            record, the folder is refused.
        may_change: Settings that may differ from the recorded ones.
        adapt: Turns the settings recorded by an older version into today's.
        recorded: What the folder says of itself elsewhere, if it has no `run.json`.
        remedy: What the command can do about a folder that is taken, as an imperative.
        replace: What it can do besides; empty if it has no --overwrite.

    Raises:
        OutputError: If the folder holds another run or unknown files, or is in use.
        FileError: If it cannot be written.
    """
    settings, names = json.loads(json.dumps(settings)), tuple(names)
    with disk_errors(path, remedy=remedy):
        path.mkdir(parents=True, exist_ok=True)
        folder = RunFolder(path, kind, settings, _lock(path, remedy))
        try:
            for place in (path, *(path / name for name in names if (path / name).is_dir())):
                remove_asides(place)
            try:
                earlier = read_record(path, remedy + replace) or (dict(recorded) if recorded else None)
            except OutputError:
                if not overwrite:
                    raise
                earlier = None
            if earlier and earlier.get("kind") not in (None, kind):
                raise OutputError(
                    f"{path} holds a run of another kind ({earlier['kind']}, not {kind}): {remedy}"
                )
            if overwrite:
                remove(path, names)
                earlier = None
            if earlier is None:
                _begin(path, names, must_exist=resume is True, remedy=remedy + replace)
                folder.versions = dict(versions or {})
            else:
                if resume is False:
                    raise OutputError(
                        f"{path} already holds a run: add --resume to go on with it, or {remedy}"
                    )
                theirs = earlier["settings"] if adapt is None else adapt(earlier["settings"])
                _refuse_another(path, theirs, settings, may_change, remedy + replace)
                folder.versions = dict(earlier.get("versions", versions or {}))
                folder.facts = dict(earlier.get("facts", {}))
                folder.resumed = True
                folder.complete = earlier.get("status") == COMPLETE
            if not folder.complete:
                folder._write(RUNNING)
        except BaseException:
            os.close(folder._lock)
            raise
    return folder


def remove(path: Path, names: Iterable[str]) -> None:
    """Delete the files of a run and its record, and nothing else of its folder.

    Args:
        path: The folder.
        names: Of its files and folders.
    """
    for name in (*names, RUN, _OLD_SCORER):
        target = path / name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def read_record(path: Path, remedy: str = REMEDY) -> dict[str, Any] | None:
    """Return what a folder says of its run, in the form of any version; None if nothing.

    Args:
        path: The folder.
        remedy: What to do if its record is damaged, as an imperative.

    Returns:
        "settings", and where known "kind", "status", "versions" and "facts".

    Raises:
        OutputError: If the record is damaged.
    """
    record = next((path / name for name in (RUN, _OLD_SCORER) if (path / name).exists()), None)
    if record is None:
        return None
    try:
        run = json.loads(record.read_text("utf-8"))
        if record.name == _OLD_SCORER:
            return {"settings": dict(run)}
        if "config" in run:  # a training run of an older version
            facts = {"data": run["data"]} if "data" in run else {}
            return {"kind": "train", "settings": dict(run["config"]), "facts": facts}
        return {
            **run,
            "settings": dict(run["settings"]),
            "versions": {str(k): str(v) for k, v in dict(run.get("versions", {})).items()},
            "facts": dict(run.get("facts", {})),
        }
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise OutputError(
            f"{record} is not the record of a run ({error}): {remedy}"
        ) from error


def _begin(path: Path, names: Iterable[str], *, must_exist: bool, remedy: str) -> None:
    taken = [name for name in names if (path / name).exists()]
    if taken:
        raise OutputError(f"{path} already holds {', '.join(taken)} of unknown origin: {remedy}")
    if must_exist:
        with contextlib.suppress(OSError):
            path.rmdir()  # made a moment ago, if it is empty
        raise OutputError(f"{path} holds no run to resume: leave out --resume to start one")


def _refuse_another(
    path: Path,
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any],
    may_change: Collection[str],
    remedy: str,
) -> None:
    before, now = _flat(theirs), _flat(ours)
    differing = [k for k in now if k not in may_change and before.get(k) != now[k]]
    if differing:
        key = differing[0]
        more = f" ({len(differing)} settings differ)" if len(differing) > 1 else ""
        raise OutputError(
            f"{path} holds another run: its {key} is {_short(before.get(key))}, yours is "
            f"{_short(now[key])}{more}: {remedy}"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "…"


def _lock(path: Path, remedy: str) -> int:
    """Lock the folder itself until the descriptor is closed, by us or by a kill."""
    if fcntl is None:
        return os.open(os.devnull, os.O_RDONLY)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise OutputError(
            f"{path} is being written by another run: wait for it, or {remedy}"
        ) from error
    except OSError:  # a file system without locks
        pass
    return descriptor
