"""Commands killed at random moments and run again; a program that compares what they leave.

`python kills.py TARGET KILLS TERMS INTERRUPTS SEED FOLDER` runs the target's command once to its
end, then again and again in processes forked from this one, which has imported everything, or, for
the kills during imports, in fresh ones. Each is ended by a signal at a random moment, the same
command goes on in the same folder, and whenever one reaches its end the result is compared. It
prints one JSON line.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hostile_files import EMT, go, write_checkpoint, write_training

GRACE = 3.0
"""Seconds in which all processes of a command have to be gone."""


@dataclass(frozen=True)
class Command:
    """A command and what it leaves.

    Attributes:
        make: Writes its inputs.
        words: The command line.
        out: What it writes.
        outcome: Reads from that what has to be the same.
        resume: Added where `out` holds a run.
    """

    make: Callable[[], object]
    words: list[str]
    out: str
    outcome: Callable[[Path], object]
    resume: str = ""


def contents(out: Path) -> object:
    """Return the bytes of a file or of all files of a folder, those that begin with a dot too."""
    files = [out] if out.is_file() else sorted(p for p in out.rglob("*") if p.is_file())
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


def campaign(out: Path) -> object:
    """Return the rows of a campaign and its tables."""
    from alloys import rows_of

    names = ("table.csv", "summary.json", "generated/crystals.extxyz", "hull.svg")
    kept = {name: (out / name).read_bytes() for name in names if (out / name).exists()}
    return rows_of(out / "campaign.db"), kept, sorted(p.name for p in out.iterdir())


def training(out: Path) -> object:
    """Return all that a training leaves but times."""
    import hashlib

    import torch
    from runs import outcome

    def plain(value: object) -> object:
        if isinstance(value, torch.Tensor):
            return hashlib.sha256(value.numpy().tobytes()).hexdigest()
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if "board" not in str(p))
    return json.dumps(plain(outcome(out)), sort_keys=True), files


def scorer(out: Path) -> object:
    """Return the trained scorer."""
    return contents(out / "checkpoint"), sorted(p.name for p in out.iterdir())


def scores(out: Path) -> object:
    """Return the scores of a comparison."""
    return json.loads(out.read_text())["scores"], sorted(p.name for p in out.parent.iterdir())


def many_frames() -> None:
    """Write 160 structures."""
    import ase.io
    from ase.build import bulk

    kinds = [
        ("Cu", "fcc", 3.61),
        ("Au", "fcc", 4.08),
        ("NaCl", "rocksalt", 5.64),
        ("Si", "diamond", 5.43),
    ]
    some = [
        bulk(name, kind, a=a * (1 + 0.0002 * i)).repeat((2, 2, 1))
        for i in range(40)
        for name, kind, a in kinds
    ]
    ase.io.write("many.extxyz", some, format="extxyz")
    Path("made").mkdir(exist_ok=True)


def copper_gold() -> None:
    """Write a tiny checkpoint, known phases and structures to relax."""
    import ase.io
    from ase.build import bulk

    write_checkpoint()
    known = [bulk("Cu"), bulk("Au"), bulk("CuAu", "cesiumchloride", a=3.1)]
    ase.io.write("known.extxyz", known, format="extxyz")
    some = [bulk(s, cubic=True, a=a) for s in ("Cu", "Au") for a in (3.3, 3.5, 3.7, 3.9, 4.1, 4.3)]
    for atoms in some:
        atoms.rattle(0.1, seed=1)
    ase.io.write("mine.extxyz", some, format="extxyz")


def stores() -> None:
    """Write data and settings of a training of some seconds."""
    from runs import write_stores

    write_stores(Path())
    write_training()
    text = Path("t.toml").read_text().replace(".extxyz", ".store").replace("val.", "validation.")
    text = text.replace("epochs = 1", "epochs = 3\nsave_minutes = 0.0\nlog_every = 3")
    Path("t.toml").write_text(text)


SAMPLE = ["crystorus", "sample", "NaCl", "MgO", "Cu3Au", "--n", "8", "--checkpoint", "model",
          "--steps", "8", "--batch-atoms", "16", "--out", "out"]  # fmt: skip
COMMANDS = {
    "train": Command(stores, ["crystorus", "train", "t.toml", "out"], "out", training, "--resume"),
    "sample": Command(write_checkpoint, SAMPLE, "out", contents),
    "sample, 2 workers": Command(write_checkpoint, [*SAMPLE, "--workers", "2"], "out", contents),
    "hull": Command(
        copper_gold, ["crystorus", "hull", "Cu-Au", "--max-atoms", "4", "--n", "1", "--budget", "8",
                      "--references", "known.extxyz", "--checkpoint", "model", "--steps", "4",
                      "--relax-steps", "8", "--out", "out", *EMT[:2], "--workers", "1"],
        "out", campaign),
    "relax": Command(
        copper_gold, ["crystorus", "relax", "mine.extxyz", "--out", "out", "--relax-steps", "40",
                      *EMT[:2], "--workers", "2"], "out", campaign),
    "train-scorer": Command(
        copper_gold, ["crystorus", "train-scorer", "known.extxyz", "--checkpoint", "model", "--out",
                      "out", "--compositions", "3", "--candidates", "3", "--epochs", "2"],
        "out", scorer),
    "data build": Command(
        many_frames, ["crystorus", "data", "build", "many.extxyz", "made/m.store", "--workers",
                      "2"], "made", contents),
    "templates build": Command(
        many_frames, ["crystorus", "templates", "build", "many.extxyz", "made/m.templates"],
        "made", contents),
    "compare": Command(
        many_frames, ["crystal-fidelity", "compare", "many.extxyz", "many.extxyz", "--metrics",
                      "validity,density,uniqueness,spacegroups", "--workers", "2", "--json",
                      "made/scores.json"], "made/scores.json", scores),
}  # fmt: skip


def started(words: list[str], *, fresh: bool) -> int:
    """Start a command in a session of its own; returns its process id."""
    if fresh:
        program = f"import sys; sys.path[:0] = {sys.path[:4]}\nfrom hostile_files import go\n"
        program += f"raise SystemExit(go(*{words!r}))"
        with Path("../said").open("ab") as sink:
            return subprocess.Popen(
                [sys.executable, "-c", program], start_new_session=True, stdout=sink, stderr=sink
            ).pid
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sink = os.open("../said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(sink, 1), os.dup2(sink, 2)
        code = go(*words)
    except KeyboardInterrupt:
        code = 130
    finally:
        sys.stdout.flush()
        os._exit(code)


def session(leader: int) -> list[int]:
    """Return the processes of a session, those that only wait to be buried left out."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = entry.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(sid) == leader and state not in "ZX":
            found.append(int(entry.parent.name))
    return found


def torment(command: Command, plan: list[tuple[int, bool]], seed: int, root: Path) -> dict:
    """Run a command with a signal for each of `plan`, and compare every result."""
    rng = random.Random(seed)
    (root / "work").mkdir(parents=True)
    os.chdir(root / "work")
    command.make()
    said, out, faults = root / "said", Path(command.out), list[str]()
    inputs = {p.name for p in Path().iterdir()}

    def words() -> list[str]:
        running = command.resume and (out / "run.json").exists()
        return [*command.words, *([command.resume] if running else [])]

    def clear() -> None:
        for path in list(Path().iterdir()):
            if path.name not in inputs:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in Path("made").glob("*"):
            path.unlink()

    def whole() -> float:
        began = time.monotonic()
        status = os.waitstatus_to_exitcode(os.waitpid(started(words(), fresh=False), 0)[1])
        if status:
            raise SystemExit(f"exit status {status}: {said.read_text()[-800:]}")
        return time.monotonic() - began

    go(*command.words)  # imports
    clear()
    took = whole()
    right, compared, codes = command.outcome(out), 0, Counter[str]()
    clear()
    took = min(took, whole())
    if command.outcome(out) != right:
        raise SystemExit("two undisturbed runs differ: nothing can be compared")
    clear()

    def compare() -> None:
        nonlocal compared
        compared += 1
        if command.outcome(out) != right:
            faults.append(f"another result after {sum(codes.values())} signals")
            shutil.copytree(root / "work", root / f"different-{compared}")
        clear()

    sent = 0
    while sent < len(plan):
        number, fresh = plan[sent]
        child = started(words(), fresh=fresh)
        until = time.monotonic() + rng.uniform(0, 6.0 if fresh else took)
        status = None
        while status is None and time.monotonic() < until:
            pid, found = os.waitpid(child, os.WNOHANG)
            status = found if pid else None
            time.sleep(0.005)
        if status is None:
            os.kill(child, number)
            sent += 1
            pid, found = 0, 0
            late = time.monotonic() + 60
            while not pid and time.monotonic() < late:
                pid, found = os.waitpid(child, os.WNOHANG)
                time.sleep(0.005)
            if not pid:
                faults.append(f"{signal.Signals(number).name} was not obeyed for 60 s")
                os.kill(child, signal.SIGKILL)
                found = os.waitpid(child, 0)[1]
            code = os.waitstatus_to_exitcode(found)
            codes[f"{signal.Signals(number).name} {code}"] += 1
            allowed = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15), signal.SIGINT: (130, -2)}
            # Python itself ends with 1 while it starts, before there is a command.
            early = fresh and number == signal.SIGINT and code == 1
            if code == 0:
                compare()
            elif code not in allowed[number] and not early:
                faults.append(f"{signal.Signals(number).name} gave exit status {code}: "
                              f"{said.read_text(errors='replace')[-600:]}")  # fmt: skip
            end = time.monotonic() + GRACE
            while session(child) and time.monotonic() < end:
                time.sleep(0.05)
            if left := session(child):
                faults.append(f"{len(left)} processes outlive {signal.Signals(number).name}")
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
        elif status := os.waitstatus_to_exitcode(status):
            faults.append(f"exit status {status}: {said.read_text(errors='replace')[-600:]}")
            clear()
        else:
            compare()
            took *= 0.9
    whole()
    compare()
    return {
        "signals": dict(codes),
        "compared": compared,
        "seconds": round(took, 1),
        "faults": faults,
    }


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here), str(here / "hull"), str(here / "train")]
    os.environ |= {"OMP_NUM_THREADS": "1"}
    import torch

    torch.set_num_threads(1)
    kills, terms, interrupts = map(int, sys.argv[2:5])
    # Every fourth is sent while a fresh process imports or begins.
    plan = [(signal.SIGKILL, i % 4 == 3) for i in range(kills)]
    plan += [(signal.SIGTERM, i % 4 == 3) for i in range(terms)]
    plan += [(signal.SIGINT, i % 4 == 3) for i in range(interrupts)]
    random.Random(int(sys.argv[5])).shuffle(plan)
    root = Path(sys.argv[6]).resolve()
    print(json.dumps(torment(COMMANDS[sys.argv[1]], plan, int(sys.argv[5]), root)))
