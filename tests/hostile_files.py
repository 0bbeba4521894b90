"""Damaged and hostile files for every command that reads one; a program that tries them.

`python hostile_files.py TARGET COUNT SEED FOLDER` makes a good input of the target in FOLDER, runs
its command once, then COUNT times on damaged copies, each in a forked process that tells what it
opens for writing, starts or connects to. It prints one JSON line per fault and one at the end.
"""

import gzip
import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MAX_SECONDS, MAX_RESIDENT = 20, 2 * 2**30
PROGRAMS = ("os.system", "os.exec", "subprocess.Popen", "os.posix_spawn", "socket.connect")
TOKENS = [
    b"nan", b"inf", b"-1", b"0", b"1e308", b"-1e-308", b"99999999999999999999", b"9" * 400, b"\0",
    b"\xff\xfe", b"../../../../outside", b"[/x]", b"=cmd()", b"__import__('os')", b'"', b"'", b",",
    b"\n", b";", b"\r", b"\xe2\x80\xa8", b"loop_\n", b"data_x\n", b"null", b"None", b"true", b"{}",
    b"[]", b"[" * 100_000, b'{"a":' * 50_000, b"1e9", b"Xx", b"(", b"$(touch executed)",
]  # fmt: skip
DEEP: object = []
for _ in range(900):
    DEEP = [DEEP]
VALUES = [
    None, [], {}, "", -1, 0, 1e308, 10**30, float("nan"), float("inf"), True, "x" * 100_000, DEEP,
    "../../../../outside", "=1+1", "[/x]", ["a"], {"a": 1}, [[0, 1]], "os:getcwd", "hostile:Trap",
    [10**9, 10**9], 2**31, 2**63, {"@module": "hostile", "@class": "Trap"},
]  # fmt: skip


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@dataclass(frozen=True)
class Target:
    """A command and the files that it reads.

    Attributes:
        make: Writes good files into the working folder.
        words: Each run takes one of these command lines; the first word names the program.
        files: What is damaged, one of them in every run.
        damage: How, by ending of the file; plain bytes otherwise.
    """

    make: Callable[[], object]
    words: list[list[str]]
    files: list[str]
    damage: dict[str, Callable[[bytes, random.Random], bytes]] = field(default_factory=dict)


# Damage


def bytes_damaged(data: bytes, rng: random.Random) -> bytes:
    """Damage bytes as bad disks, editors and strangers do."""
    at, to = sorted(rng.randrange(len(data) + 1) for _ in "ab")
    lines = data.split(b"\n")
    line = rng.randrange(len(lines))
    kind = rng.randrange(11)
    if kind == 0:
        return data[:at]
    if kind == 1:
        flipped = bytearray(data)
        for _ in range(rng.choice([1, 5, 50])):
            flipped[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(flipped)
    if kind == 2:
        return data[:at] + rng.choice(TOKENS) + data[at:]
    if kind == 3:
        return data[:at] + data[to:]
    if kind == 4:
        return (
            data[:to] + data[at:to] * rng.choice([1, 3, 1000 if to - at < 2000 else 2]) + data[to:]
        )
    if kind == 5:
        other = rng.randrange(len(lines))
        lines[line], lines[other] = lines[other], lines[line]
    elif kind == 6:
        del lines[line]
    elif kind == 7:
        lines[line:line] = [lines[line]] * rng.choice([1, 1000])
    elif kind == 8:
        return rng.randbytes(rng.choice([0, 1, 100, 5000]))
    else:
        found = list(re.finditer(rb"-?\d+(\.\d+)?|[A-Za-z_]+", data))
        for one in sorted(rng.sample(found, min(len(found), rng.choice([1, 1, 3]))),
                          key=lambda m: -m.start()):  # fmt: skip
            data = data[: one.start()] + rng.choice(TOKENS) + data[one.end() :]
        return data
    return b"\n".join(lines)


def tree_damaged(tree: object, rng: random.Random) -> object:
    """Put a hostile value into some place of a tree of lists and dicts, or take one away."""
    places: list[tuple] = []

    def walk(node: object) -> None:
        for key in list(node if isinstance(node, dict) else range(len(node))):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    if isinstance(tree, dict | list):
        walk(tree)
    if not places or rng.random() < 0.03:
        return rng.choice(VALUES)
    for _ in range(rng.choice([1, 1, 2])):
        node, key = rng.choice(places)
        if isinstance(node, dict) and rng.random() < 0.15:
            node.pop(key, None)
        else:
            node[key] = rng.choice(VALUES)
    return tree


def json_damaged(data: bytes, rng: random.Random) -> bytes:
    """Damage JSON as text, or keep it JSON and change what it says."""
    if rng.random() < 0.3:
        return bytes_damaged(data, rng)
    return json.dumps(tree_damaged(json.loads(data), rng)).encode()


def gzip_damaged(data: bytes, rng: random.Random) -> bytes:
    """Damage the stream or what is packed in it; sometimes a bomb."""
    if rng.random() < 0.1:
        return gzip.compress(gzip.decompress(data) + b"\n" * rng.choice([2**20, 2**29]), 1)
    if rng.random() < 0.5:
        return bytes_damaged(data, rng)
    return gzip.compress(bytes_damaged(gzip.decompress(data), rng), 1)


def tensors_damaged(data: bytes, rng: random.Random) -> bytes:
    """Damage the header or the arrays of a safetensors file; its own digest is set right again."""
    if rng.random() < 0.3:
        return bytes_damaged(data, rng)
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    about = header.get("__metadata__", {})
    if "crystorus" in about and rng.random() < 0.5:
        about["crystorus"] = json.dumps(tree_damaged(json.loads(about["crystorus"]), rng))
    elif rng.random() < 0.4:
        header = tree_damaged(header, rng)
    elif body:
        for _ in range(rng.choice([1, 20])):
            at = rng.randrange(len(body))
            word = rng.choice([b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", rng.randbytes(8)])
            body[at : at + len(word)] = word[: len(body) - at]
    text = json.dumps(header).encode()
    return with_own_digest(len(text).to_bytes(8, "little") + text + bytes(body))


def with_own_digest(data: bytes) -> bytes:
    """Return a file of arrays with the digest that it would have were it honest."""
    from crystorus.data.store import _digest

    try:
        _, digest, place = _digest(io.BytesIO(data))
    except (ValueError, OverflowError, MemoryError):
        return data
    honest = data[:place] + digest.encode() + data[place + 64 :]
    return honest if b'{\\"sha256\\": \\"' in data else data


def database_damaged(data: bytes, rng: random.Random) -> bytes:
    """Damage pages, or change what the rows of an SQLite file say."""
    if rng.random() < 0.4:
        return bytes_damaged(data, rng)
    path = Path("aside.db")
    path.write_bytes(data)
    plain = sqlite3.connect(path)
    table = rng.choice(["systems"] * 5 + ["information", "keys", "text_key_values"])
    columns = [row[1] for row in plain.execute(f"PRAGMA table_info({table})")]
    column = rng.choice(columns)
    value = rng.choice([*VALUES[4:9], None, "x" * 1000, b"\xff" * 7, b"\0" * 24, b"", "{}", "[1]"])
    value = str(value) if isinstance(value, int) and abs(value) > 2**62 else value
    where = "" if rng.random() < 0.3 else " WHERE rowid = 2"
    try:
        if column in ("key_value_pairs", "data") or table == "information":
            column = "value" if table == "information" else column
            for rowid, text in plain.execute(f"SELECT rowid, {column} FROM {table}").fetchall():
                if isinstance(text, str) and text.startswith(("{", "[")):
                    value = json.dumps(tree_damaged(json.loads(text), rng))
                    plain.execute(
                        f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, rowid)
                    )
        elif rng.random() < 0.1:
            plain.execute(f"DROP TABLE {table}")
        else:
            plain.execute(f"UPDATE {table} SET {column} = ?{where}", (value,))
        plain.commit()
    except sqlite3.Error:
        return bytes_damaged(data, rng)
    finally:
        plain.close()
    found = path.read_bytes()
    path.unlink()
    return found


def archive_damaged(data: bytes, rng: random.Random) -> bytes:
    """Damage the members of a zip file (weights, npz); programs and bombs among them."""
    kind = rng.random()
    if kind < 0.35:
        return bytes_damaged(data, rng)
    if kind < 0.4:
        return pickle.dumps(Trap())
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        names = old.namelist()
        chosen = rng.choice(names)
        for name in names:
            content = old.read(name)
            if name == chosen and kind < 0.5:
                content = pickle.dumps(Trap())
            elif name == chosen and kind < 0.55:
                content += b"\0" * 2**28
            elif name == chosen:
                content = bytes_damaged(content, rng)
            renamed = "../../outside" if name == chosen and kind > 0.95 else name
            new.writestr(renamed, content, zipfile.ZIP_DEFLATED if len(content) > 2**20 else None)
        if kind > 0.9:
            new.writestr(names[0].split("/")[0] + "/code/__torch__.py", b"import os")
    return made.getvalue()


def checkpoint_redone(folder: Path) -> None:
    """Let the cards of a checkpoint name the digests of the weights beside them."""
    from crystal_fidelity.files import file_digest

    for card, weights in (("card.json", "weights"), ("scorer.json", "scorer")):
        try:
            record = json.loads((folder / card).read_bytes())
            record["sha256"] = file_digest(folder / f"{weights}.safetensors")
            (folder / card).write_text(json.dumps(record))
        except (OSError, ValueError, TypeError, RecursionError):
            pass


# Good files


def frames() -> list:
    """Three small crystals as ASE has them, with names and energies."""
    from ase.build import bulk

    found = [bulk("NaCl", "rocksalt", a=5.64), bulk("Cu"), bulk("CuAu", "cesiumchloride", a=3.1)]
    for number, atoms in enumerate(found):
        atoms.info |= {"material_id": f"m{number}", "energy": -3.0 * len(atoms), "note": "x"}
    return found


def write_frames(name: str, count: int = 3) -> None:
    """Write them in the format that the name says."""
    import ase.db
    import ase.io
    from ase import Atoms

    some: list[Atoms] = frames()[:count]
    if name.endswith(".db"):
        Path(name).unlink(missing_ok=True)
        with ase.db.connect(name, use_lock_file=False) as base:
            for atoms in some:
                base.write(atoms, material_id=atoms.info["material_id"], gap=1.5)
    elif name.endswith(".csv") or name.endswith(".csv.gz"):
        import csv

        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["material_id", "formation_energy_per_atom", "cif"])
        for atoms in some:
            content = io.BytesIO()
            ase.io.write(content, atoms, format="cif")
            writer.writerow([atoms.info["material_id"], "-1.5", content.getvalue().decode()])
        data = text.getvalue().encode()
        Path(name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    else:
        ase.io.write(name, some, format={"cif": "cif", "poscar": "vasp"}.get(
            name.rpartition(".")[2], "extxyz"))  # fmt: skip


SYMMETRIC = """data_x
_cell_length_a 4.7602(4)
_cell_length_b 4.7602
_cell_length_c 12.9933
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 120
_chemical_formula_sum 'Al2 O3'
_cell_formula_units_Z 6
_symmetry_space_group_name_H-M 'R -3 c'
_space_group_IT_number 167
_space_group_name_Hall '-R 3 2"c'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Al1 Al3+ 0 0 0.35216(1) 1.0
O1 O2- 0.30624 0 0.25 1.0
"""


def write_checkpoint() -> None:
    """Write an untrained tiny checkpoint with a scorer and skeletons."""
    import torch
    from tiny import TINY

    from crystorus.checkpoint import save_checkpoint, save_scorer, save_skeletons
    from crystorus.config import config_from_dict
    from crystorus.crystal_model import build_model
    from crystorus.diffusion.cell_prior import CellStatistics
    from crystorus.diffusion.space_groups import Skeleton, Skeletons
    from crystorus.networks.fieldnet import FieldNet
    from crystorus.networks.scorer import Scorer

    torch.manual_seed(0)
    config = config_from_dict(TINY | {"sampling": {"steps": 2}})
    model = build_model(config, CellStatistics.neutral())
    model.trained_elements = frozenset({8, 11, 12, 17, 29, 79})
    save_checkpoint(model, Path("model"))
    like = model.denoiser.network
    network = FieldNet(like.config, steps=like.steps, max_atoms=like.max_atoms)
    save_scorer(Scorer(network, level=1), Path("model"), {})
    salts = [((11, 0), (17, 1)), ((12, 0), (8, 1)), ((12, 1), (17, 0))]
    save_skeletons(Skeletons.of([Skeleton(225, orbits) for orbits in salts]), Path("model"))


def write_store() -> None:
    """Write a store, a library of it, and the store in the layout of version 0.1."""
    import numpy as np

    from crystorus.data.store import build_store
    from crystorus.templates.library import build_library

    write_checkpoint()
    write_frames("s.extxyz")
    store = build_store(Path("s.extxyz"), Path("s.store"))
    build_library(Path("s.store"), Path("s.templates"))
    arrays, data = {}, b""
    for name, array in store.arrays.items():
        arrays[name] = {"dtype": array.dtype.str, "shape": [*array.shape], "offset": len(data)}
        data += array.tobytes() + b"\0" * (-len(array.tobytes()) % 64)
    import hashlib

    header = store.header | {"bytes": len(data), "arrays": arrays}
    header["sha256"] = hashlib.sha256(data).hexdigest()
    text = json.dumps(header).encode()
    start = b"CRYSTOR1" + len(text).to_bytes(8, "little") + text
    Path("old.store").write_bytes(
        start + b"\0" * (-len(start) % 64) + np.frombuffer(data, "u1").tobytes()
    )


def write_training() -> None:
    """Write data and settings of a training of a second."""
    import ase.io
    from ase.build import bulk

    some = [bulk("Cu", a=3.4 + 0.02 * i) for i in range(8)] + [
        bulk("Au", a=4 + 0.1 * i) for i in range(4)
    ]
    for name in ("train", "val"):
        ase.io.write(f"{name}.extxyz", some, format="extxyz")
    Path("t.toml").write_text(
        'preset = "default"\n[data]\ntrain = "train.extxyz"\nvalidation = "val.extxyz"\n'
        "max_atoms = 20\n[network]\nchannels = 16\nvector_channels = 4\ntensor_channels = 4\n"
        "pair_channels = 8\ngate_channels = 4\nblocks = 1\n[diffusion]\nsteps = 20\n[training]\n"
        'epochs = 1\nbatch_size = 4\naccelerator = "cpu"\nlearning_rate = 1e-3\nsample_every = 0\n'
        "ema_decay = 0.9\nseed = 0\nclip_norm = 1.0\n[sampling]\nsteps = 3\nanti_annealing = 1.0\n"
    )


def write_trained() -> None:
    """Write a finished training, to be continued."""
    write_training()
    if not Path("run").exists():
        go("crystorus", "train", "t.toml", "run")


def write_sampled() -> None:
    """Write a sampling that was interrupted: its parts are there, and its record says so."""
    write_checkpoint()
    shutil.rmtree("out", ignore_errors=True)
    from crystorus.sample import output

    finish, output.OutputFolder.finish = output.OutputFolder.finish, lambda self: None
    try:
        go("crystorus", *SAMPLE, "--out", "out")
    finally:
        output.OutputFolder.finish = finish
    (part,) = Path("out/.parts").iterdir()
    part.rename("out/.parts/part.json")


def write_entries() -> None:
    """Write pymatgen entries of Cu-Au with structures, corrections and run types."""
    from pymatgen.core import Lattice, Structure
    from pymatgen.entries.computed_entries import (
        CompositionEnergyAdjustment,
        ComputedStructureEntry,
    )

    listed = []
    for number, (symbols, energy) in enumerate(
        [(["Cu"], -3.7), (["Au"], -3.2), (["Cu", "Au"], -7.3)]
    ):
        cell = Structure(Lattice.cubic(3.0), symbols, [[0, 0, 0], [0.5, 0.5, 0.5]][: len(symbols)])
        adjust = [CompositionEnergyAdjustment(-0.1, 1, name="a")] if number == 2 else []
        one = ComputedStructureEntry(cell, energy, energy_adjustments=adjust, entry_id=f"e{number}",
                                     parameters={"run_type": "GGA"})  # fmt: skip
        listed.append(one.as_dict())
    Path("e.json").write_text(json.dumps(listed))
    Path("e.json.gz").write_bytes(gzip.compress(json.dumps(listed).encode()))


def write_campaign() -> None:
    """Write a campaign of three relaxed structures, references for it, answers of a server."""
    import ase.io

    write_entries()
    ase.io.write("s.extxyz", frames()[1:], format="extxyz")
    if not Path("camp").exists():
        go("crystorus", "relax", "s.extxyz", "--out", "camp", *EMT)
    listed = [
        {"material_id": f"mp-{n}", "energy_per_atom": one["energy"], "structure": one["structure"],
         "deprecated": False}
        for n, one in enumerate(json.loads(Path("e.json").read_text()))
    ]  # fmt: skip
    answer = {"elements": ["Au", "Cu"], "data": listed}
    Path("camp/references").mkdir(exist_ok=True)
    Path("camp/references/materials-project-Au-Cu.json").write_text(json.dumps(answer))


def write_weights() -> None:
    """Write the state dict of an ALIGNN as PyTorch does."""
    import torch

    from crystal_fidelity.features.alignn import Alignn

    torch.save({"model": Alignn().state_dict()}, "w.pth")


def write_features() -> None:
    """Write the features of two sets."""
    import numpy as np

    from crystal_fidelity.features import FeatureSet, Identity, save_features

    rows = np.random.default_rng(0).normal(size=(9, 3))
    identity = Identity("net", "0" * 64, "none")
    for name in "ab":
        save_features(Path(f"{name}.npz"), FeatureSet(rows, tuple("abcdefghi"), identity))


def write_scales() -> None:
    """Write structures, references of the elements, and means and deviations of Magpie."""
    import ase.io
    from ase.build import bulk

    from crystal_fidelity.coverage import COMPOSITION_WIDTH
    from crystal_fidelity.energies import References

    some = [bulk("Cu"), bulk("Au"), bulk("CuAu", "cesiumchloride", a=3.1)]
    ase.io.write("s.extxyz", some, format="extxyz")
    model = "ase.calculators.emt:EMT, weights unknown, of the calculator"
    References({"Cu": -3.7, "Au": -3.2}, model, "s", 3, 0.1, 3).save("references.json")
    numbers = [1.0] * COMPOSITION_WIDTH
    Path("scale.json").write_text(json.dumps({"mean": numbers, "std": numbers}))


def write_folder() -> None:
    """Write a folder of files."""
    Path("many").mkdir(exist_ok=True)
    for name in ("one.cif", "two.poscar"):
        write_frames(name, 1)
        shutil.move(name, f"many/{name}")
    Path("many/three.cif").write_text(SYMMETRIC)


EMT = ("--potential", "ase.calculators.emt:EMT", "--workers", "0")
SAMPLE = ("sample", "NaCl", "--n", "2", "--checkpoint", "model", "--steps", "2")
READ = [
    ["crystal-fidelity", "validity", "FILE", "--workers", "1"],
    ["crystorus", "data", "build", "FILE", "read.store"],
]


def reading(name: str, damage: Callable[[bytes, random.Random], bytes] | None = None) -> Target:
    """Return the target of both packages' readers."""
    words = [[name if word == "FILE" else word for word in line] for line in READ]
    found = {} if damage is None else {name: damage}
    count = 1 if name.endswith((".poscar", ".cif")) else 3
    return Target(lambda: write_frames(name, count), words, [name], found)


COMPARE = ["crystal-fidelity", "compare", "s.extxyz", "s.extxyz", "--workers", "1", "--metrics"]
RANK = ["crystorus", "rank", "camp", "--no-report", *EMT]
TARGETS = {
    "cif": reading("a.cif"),
    "symmetric cif": Target(
        lambda: Path("a.cif").write_text(SYMMETRIC), [[w if w != "FILE" else "a.cif" for w in line]
        for line in READ], ["a.cif"]),
    "extxyz": reading("a.extxyz"),
    "poscar": reading("a.poscar"),
    "csv": reading("a.csv"),
    "csv.gz": reading("a.csv.gz", gzip_damaged),
    "ase database": reading("a.db", database_damaged),
    "folder": Target(write_folder, [[w if w != "FILE" else "many" for w in line] for line in READ],
                     ["many/one.cif", "many/two.poscar", "many/three.cif"]),
    # Damage may ask for a thousand epochs.
    "settings": Target(
        write_training,
        [["crystorus", "train", "t.toml", "run", "training.cpu_minutes=0.1"]],
        ["t.toml"],
    ),
    "overrides": Target(write_training, [["crystorus", "train", "t.toml", "run", "OVERRIDE"]], []),
    "training folder": Target(
        write_trained, [["crystorus", "train", "t.toml", "run", "training.epochs=2", "--resume"]],
        ["run/state/last.ckpt", "run/run.json", "run/metrics.csv"],
        {"run/state/last.ckpt": archive_damaged, "run/run.json": json_damaged}),
    "checkpoint": Target(
        write_checkpoint, [["crystorus", *SAMPLE], ["crystorus", "info", "model"]],
        ["model/card.json", "model/weights.safetensors"],
        {"model/card.json": json_damaged, "model/weights.safetensors": tensors_damaged}),
    "scorer": Target(
        write_checkpoint, [["crystorus", *SAMPLE, "--candidates", "2"]],
        ["model/scorer.json", "model/scorer.safetensors"],
        {"model/scorer.json": json_damaged, "model/scorer.safetensors": tensors_damaged}),
    "skeletons": Target(
        write_checkpoint, [["crystorus", *SAMPLE]], ["model/skeletons.safetensors"],
        {"model/skeletons.safetensors": tensors_damaged}),
    "store": Target(
        write_store, [["crystorus", "templates", "build", "s.store", "t.templates"]], ["s.store"],
        {"s.store": tensors_damaged}),
    "old store": Target(
        write_store, [["crystorus", "templates", "build", "old.store", "t.templates"]],
        ["old.store"]),
    "library": Target(
        write_store, [["crystorus", *SAMPLE, "--start", "templates", "--library", "s.templates"]],
        ["s.templates"], {"s.templates": tensors_damaged}),
    "sampling folder": Target(
        write_sampled, [["crystorus", *SAMPLE, "--out", "out"]],
        ["out/run.json", "out/.parts/part.json", "out/table.csv"],
        {"out/run.json": json_damaged, "out/.parts/part.json": json_damaged}),
    "entries": Target(
        write_entries, [["crystorus", "rank", f"e.json{gz}", "--references", f"e.json{gz}", "--out",
                         "ranked", "--no-report"] for gz in ("", ".gz")], ["e.json", "e.json.gz"],
        {"e.json": json_damaged, "e.json.gz": gzip_damaged}),
    "campaign": Target(
        write_campaign, [[*RANK, "--references", "e.json", "--mix-energy-levels"],
                         ["crystorus", "relax", "camp", *EMT]],
        ["camp/campaign.db", "camp/campaign.db", "camp/run.json"],
        {"camp/campaign.db": database_damaged, "camp/run.json": json_damaged}),
    "answers": Target(
        write_campaign, [[*RANK, "--references", "materials-project", "--mix-energy-levels"]],
        ["camp/references/materials-project-Au-Cu.json"],
        {"camp/references/materials-project-Au-Cu.json": json_damaged}),
    "weights": Target(
        write_weights, [["crystal-fidelity", "weights", "convert", "w.pth", "w.safetensors"]],
        ["w.pth"], {"w.pth": archive_damaged}),
    "energy references": Target(
        write_scales, [[*COMPARE, "energy", "--energy", "ase.calculators.emt:EMT", "--references",
                        "references.json"]], ["references.json"],
        {"references.json": json_damaged}),
    "coverage scale": Target(
        write_scales, [[*COMPARE, "coverage", "--coverage-scale", "scale.json"]], ["scale.json"],
        {"scale.json": json_damaged}),
    "features": Target(
        write_features, [["crystal-fidelity", "frechet", "a.npz", "b.npz"]], ["a.npz"],
        {"a.npz": archive_damaged}),
}  # fmt: skip


def overrides(rng: random.Random) -> str:
    """Return one hostile KEY=VALUE."""
    keys = ["training.epochs", "training.batch_size", "training.learning_rate", "network.channels",
            "diffusion.steps", "data.max_atoms", "sampling.steps", "training.minutes", "preset",
            "training.accelerator", "training.devices", "data.train", "network.blocks", "x.y", "",
            "training.seed", "training.ema_decay", "training.clip_norm", "sampling.sampler",
            "training.log_every", "training.decay", "training.warmup_steps", "training",
            "training.batch_pairs", "training.cpu_atoms", "diffusion.cell_betas"]  # fmt: skip
    values = ["nan", "inf", "-1", "0", "1e308", "9" * 30, "", "[]", "{}", "true", "'x'", "[[1", "x",
              "../../outside", "=1", "1.5", "[1, 2]", "[nan, 1]", "\u2028", "None", "2026-01-01",
              "1e-300", "a=b=c"]  # fmt: skip
    return f"{rng.choice(keys)}={rng.choice(values)}"


# Runs


def go(program: str, *words: str) -> int:
    """Run a command line in this process; returns its exit status."""
    if program == "crystorus":
        from crystorus.cli import main

        arguments = (words,)
    else:
        from crystal_fidelity.cli import main

        arguments = ()
        sys.argv = [program, *words]
    try:
        main(*arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def watched(words: list[str], report: Path) -> int:
    """Run a command in a forked process with limits; returns the status of `os.wait4`."""
    child = os.fork()
    if child:
        return child
    sink = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(sink, 1), os.dup2(sink, 2)
    inside = (str(Path.cwd().resolve()) + "/", tempfile.gettempdir() + "/")

    def watch(event: str, arguments: tuple) -> None:
        """Tell of files changed outside, of programs and of connections."""
        if event == "open":
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(str(mode)) & set("wax+")
            places = [path] if writes and isinstance(path, str | bytes | os.PathLike) else []
            inside_too = (*inside, "/dev/", "/proc/")
        elif event in ("os.remove", "os.rename", "os.mkdir", "shutil.rmtree"):
            places, inside_too = [a for a in arguments[:2] if isinstance(a, str | Path)], inside
        elif event in PROGRAMS and arguments[0] != "git":  # whose commit is recorded
            places, inside_too = [f"{event} {arguments[:2]}"], ()
        else:
            return
        for place in places:
            full = os.path.realpath(os.fsdecode(place)) + "/"
            if not full.startswith(inside_too):
                os.write(sink, f"OUTSIDE {event} {place}\n".encode())

    code = 99
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
        size = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (size + 4 * 2**30,) * 2)
        sys.addaudithook(watch)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = go(*words)
    except BaseException as error:  # noqa: BLE001
        os.write(sink, f"Traceback: {type(error).__name__}: {error}\n".encode())
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def attack(target: Target, count: int, seed: int, root: Path) -> None:
    """Make good files, run the command on them, then on damaged copies; print what went wrong."""
    kept = {"good", "work", "report", "temporary"}
    rng, good, work = random.Random(seed), root / "good", root / "work"
    good.mkdir(parents=True)
    (root / "temporary").mkdir()
    tempfile.tempdir = str(root / "temporary")
    os.chdir(good)
    target.make()
    shutil.copytree(good, work)
    os.chdir(work)
    for words in target.words:  # loads what the command needs, and shows that it can succeed
        status = go(*("training.epochs=1" if w == "OVERRIDE" else w for w in words))
        if status:
            raise SystemExit(f"{words} fails on good files with exit status {status}")
    os.chdir(root)
    report, outcomes = root / "report", dict[str, int]()
    for number in range(count):
        shutil.rmtree(work)
        shutil.copytree(good, work)
        os.chdir(work)
        words, name = list(rng.choice(target.words)), rng.choice(target.files or [""])
        if "OVERRIDE" in words:
            words[words.index("OVERRIDE")] = name = overrides(rng)
        else:
            damage = target.damage.get(name, bytes_damaged)
            Path(name).write_bytes(damage(Path(name).read_bytes(), rng))
            if name.startswith("model/") and rng.random() < 0.7:
                checkpoint_redone(Path("model"))
        words = [name if w.startswith("e.json") else w for w in words]
        began = time.monotonic()
        _, status, usage = os.wait4(watched(words, report), 0)
        said = report.read_text(errors="replace")
        faults = [w for w in ("Traceback", "error: unexpected", "OUTSIDE") if w in said]
        if os.WIFSIGNALED(status):
            faults.append(f"signal {os.WTERMSIG(status)}")
        elif os.WEXITSTATUS(status) not in (0, 1, 2, 3):
            faults.append(f"exit status {os.WEXITSTATUS(status)}")
        if usage.ru_maxrss * 1024 > MAX_RESIDENT:
            faults.append(f"{usage.ru_maxrss // 1024} MiB")
        if usage.ru_utime + usage.ru_stime > MAX_SECONDS:
            faults.append(f"{usage.ru_utime:.0f} s")
        strange = [p.name for p in root.iterdir() if p.name not in kept]
        if list(work.rglob("executed")) or strange:
            faults.append(f"executed or outside {strange}")
        # Of a folder, one file is left out.
        noticed = status or re.search(r"[1-9]\d* left out|unreadable", said)
        outcome = "refused" if noticed else "read"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if faults:
            if Path(name).is_file():
                shutil.copy(
                    name,
                    root.parent / f"fault-{root.name.replace(' ', '-')}-{number}-{Path(name).name}",
                )
            print(json.dumps({"fault": faults, "number": number, "file": name, "words": words,
                              "seconds": round(time.monotonic() - began, 1),
                              "said": said[-600:]}), flush=True)  # fmt: skip
    print(json.dumps({"tried": count, **outcomes}))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent)]
    os.environ |= {"OMP_NUM_THREADS": "1", "MP_API_KEY": "k" * 32,
                   "MP_API_ENDPOINT": "http://127.0.0.1:9"}  # fmt: skip
    import torch

    torch.set_num_threads(1)
    attack(TARGETS[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]).resolve())
