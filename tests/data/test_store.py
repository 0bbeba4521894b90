"""The cache: what goes in comes out, and nothing broken is believed."""

import csv
import gzip
import hashlib
import json
import pickle

import numpy as np
import pytest
import torch
from prototypes import all_prototypes, rocksalt
from pymatgen.analysis.structure_matcher import StructureMatcher
from safetensors.numpy import save_file

from crystal_fidelity.cells import least_distance
from crystal_fidelity.structures import Crystal, ReadFailure
from crystorus.data.convert import crystals_to_structures, split
from crystorus.data.store import (
    MOST_ATOMS,
    STORE,
    CrystalStore,
    build_store,
    digest_of,
    open_or_build,
    open_store,
    usable,
    write_arrays,
)
from crystorus.data.writers import cif_text, extxyz_text
from crystorus.errors import FileError, ReadingError
from crystorus.geometry import Crystals
from crystorus.geometry.symmetry import supercell

PARTS = all_prototypes()
FIELDS = ["material_id", "band_gap", "formula", "cif", "nothing"]


def rows() -> list[dict[str, str]]:
    return [
        {
            "material_id": f"id-{name}",
            "band_gap": "" if name == "bcc" else str(0.5 * i),
            "formula": f'é{name}, "q"',
            "cif": cif_text(crystal, name),
            "nothing": "",
        }
        for i, (name, crystal) in enumerate(PARTS.items())
    ]


def write_csv(path, table=None, fields=FIELDS):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fields, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows() if table is None else table)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> CrystalStore:
    folder = tmp_path_factory.mktemp("store")
    return build_store(write_csv(folder / "all.csv.gz"), folder / "all.store")


def test_every_crystal_comes_back_reduced_and_in_order(store):
    assert len(store) == len(PARTS)
    assert store.ids == [f"id-{name}" for name in PARTS]
    assert store.skipped == []
    matcher = StructureMatcher(stol=1e-3, primitive_cell=False)
    for i, original in enumerate(PARTS.values()):
        crystal = store.select([i], dtype=torch.float64)
        (old,), (new,) = crystals_to_structures(original), crystals_to_structures(crystal)
        assert matcher.fit(old, new)
        assert torch.linalg.det(crystal.lattice[0]) > 0
        niggli = old.lattice.get_niggli_reduced_lattice()
        assert np.allclose(sorted(new.lattice.abc), sorted(niggli.abc), atol=1e-5)
        assert store.n_atoms[i] == len(old)


def test_select_gathers_what_single_reads_give(store):
    chosen = np.array([5, 2, 2, 9, 0])
    together, one_by_one = store.select(chosen), Crystals.concat([store[int(i)] for i in chosen])
    assert together.lattice.dtype == together.frac_coords.dtype == torch.float32
    for a, b in zip(vars(together).values(), vars(one_by_one).values(), strict=True):
        assert torch.equal(a, b)
    assert ((together.frac_coords >= 0) & (together.frac_coords < 1)).all()
    assert len(store.select([])) == 0


def test_negative_and_impossible_indices(store):
    assert torch.equal(store[-1].lattice, store[len(store) - 1].lattice)
    with pytest.raises(IndexError, match=f"crystal {len(store)} of {len(store)}"):
        store[len(store)]


def test_writing_to_a_batch_does_not_reach_the_file(store):
    batch = store.select([0], dtype=torch.float64)
    batch.lattice.zero_()
    assert store[0].lattice.abs().max() > 0


def test_extra_columns_are_kept_as_numbers_or_texts(store):
    assert store.extra_columns == ["band_gap", "formula", "nothing"]
    gap = store.extra("band_gap")
    assert gap.dtype == np.float64
    assert np.isnan(gap[list(PARTS).index("bcc")])
    assert gap[3] == 1.5
    assert store.extra("formula")[0] == 'éfcc, "q"'
    with pytest.raises(KeyError, match="it has band_gap, formula"):
        store.extra("hardness")


def test_a_store_travels_to_other_processes_by_path(store):
    data = pickle.dumps(store)
    assert len(data) < 1000
    copy = pickle.loads(data)  # noqa: S301 - our own bytes
    assert torch.equal(copy[3].lattice, store[3].lattice)


def test_two_sources_and_two_workers_give_the_same_bytes(tmp_path):
    plain = write_csv(tmp_path / "a.csv")
    folder = tmp_path / "cifs"
    folder.mkdir()
    for name, crystal in PARTS.items():
        (folder / f"{name}.cif").write_text(cif_text(crystal, name))
    build_store([plain, folder], tmp_path / "one.store", n_workers=1)
    build_store([plain, folder], tmp_path / "two.store", n_workers=2)
    assert digest_of(tmp_path / "one.store") == digest_of(tmp_path / "two.store")
    both = open_store(tmp_path / "one.store")
    assert len(both) == 2 * len(PARTS)
    assert both.ids[-1] == sorted(PARTS)[-1]


def test_bad_structures_are_left_out_and_named(tmp_path):
    table = rows()[:4]
    table[1]["cif"] = table[1]["cif"].replace("1.0", "nan").replace(" 1\n", " 0.5\n")
    collapsed = PARTS["rocksalt"]
    near = collapsed.with_geometry(collapsed.lattice, collapsed.frac_coords * 0.05)
    table[2]["cif"] = cif_text(near, "near")
    distance = least_distance(split(near)[0])
    assert distance < 0.5
    seen = []
    built = build_store(
        write_csv(tmp_path / "a.csv", table), tmp_path / "a.store", progress=seen.append
    )
    assert built.ids == ["id-fcc", "id-rocksalt"]
    assert seen[-1] == 4
    reasons = dict(built.skipped)
    assert "partial occupancies" in reasons["id-bcc"]
    assert f"{distance:.3f} Å apart, below 0.5 Å" in reasons["id-hcp"]


def test_a_short_row_is_named_and_the_rest_is_read(tmp_path):
    path = write_csv(tmp_path / "a.csv", rows()[:2])
    with path.open("a") as stream:
        stream.write("id-cut,0.5\n")
    built = build_store(path, tmp_path / "a.store")
    assert len(built) == 2
    assert built.skipped[0][0] == "id-cut"
    assert "2 of 5 columns" in built.skipped[0][1]


def test_rows_without_ids_are_numbered(tmp_path):
    path = write_csv(tmp_path / "a.csv", fields=["cif"])
    assert build_store(path, tmp_path / "a.store").ids[:2] == ["row-1", "row-2"]


def test_a_table_without_a_usable_structure_leaves_one_message_and_no_file(tmp_path):
    path = write_csv(tmp_path / "a.csv", [])
    with pytest.raises(ReadingError, match=r"no usable structure in .*a\.csv|holds no structure"):
        build_store(path, tmp_path / "a.store")
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_cells_of_any_size_are_kept(tmp_path):
    large = supercell(rocksalt(), (6, 6, 5))  # 360 atoms in one cell: 1.7e6 distances
    (tmp_path / "a.extxyz").write_text(extxyz_text(Crystals.concat([large, PARTS["spinel"]])))
    built = build_store(tmp_path / "a.extxyz", tmp_path / "a.store")
    assert built.n_atoms.tolist() == [360, int(PARTS["spinel"].n_atoms)]
    assert least_distance(split(built[0])[0]) == pytest.approx(least_distance(split(rocksalt())[0]))


def flip(data: bytes, where: int) -> bytes:
    return data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b[:-1], "cut short or altered"),
        (lambda b: b + b"0", "cut short or altered"),
        (lambda b: b[: len(b) // 2], "cut short or altered"),
        (lambda b: b[:30], "cut short or altered"),
        (lambda b: b[:7], "not a crystal store"),
        (lambda b: b"", "not a crystal store"),
        (lambda b: b"CRYSTOR9" + b[8:], "cut short or altered"),
        (lambda b: b"\x80\x04pickle" + b, "not a crystal store"),
        (lambda b: b[:16] + b"x" * 40 + b[56:], "cut short or altered"),
        (lambda b: flip(b, len(b) - 100), "does not match its digest"),
        # The header is inside the digest: names, sources, and which array is which.
        (lambda b: b.replace(b"all.csv.gz", b"all.csv.gy", 1), "does not match its digest"),
        (lambda b: b.replace(b"partial", b"PARTIAL").replace(b"band_gap", b"bond_gap"), "digest"),
        (lambda b: b.replace(b'"id:text"', b'"id:texs"', 1), "does not match its digest"),
        (lambda b: b.replace(b"crystal store", b"crystal stork", 1), "is a crystal stork, not"),
    ],
)
def test_altered_stores_are_refused(store, tmp_path, change, words):
    path = tmp_path / "bad.store"
    path.write_bytes(change(store.path.read_bytes()))
    with pytest.raises(ReadingError, match=words) as caught:
        open_store(path)
    assert "build it again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_any_safetensors_file_is_no_store(tmp_path):
    save_file({"lattice": np.zeros((1, 3, 3))}, tmp_path / "a.safetensors")
    with pytest.raises(ReadingError, match="file of another program, not a crystal store"):
        open_store(tmp_path / "a.safetensors")


def test_equal_sources_give_equal_bytes_and_files_that_others_can_read(tmp_path):
    path = write_csv(tmp_path / "a.csv")
    for name in ("one", "two"):
        build_store(path, tmp_path / f"{name}.store")
    assert (tmp_path / "one.store").read_bytes() == (tmp_path / "two.store").read_bytes()
    assert (tmp_path / "one.store").stat().st_mode == path.stat().st_mode


# Files of version 0.1


def old_bytes(store: CrystalStore, **changes) -> bytes:
    """Return a store in the layout of version 0.1, with lies about one of its arrays."""
    entries, data = {}, b""
    for name, array in store.arrays.items():
        entries[name] = {"dtype": array.dtype.str, "shape": array.shape, "offset": len(data)}
        data += array.tobytes()
        data += bytes(-len(data) % 64)
    entries["lattice"] |= changes
    header = {
        **{key: store.header[key] for key in ("sources", "crystals", "skipped", "extra")},
        "arrays": entries,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    text = json.dumps(header).encode()
    head = b"CRYSTOR1" + len(text).to_bytes(8, "little") + text
    return head + bytes(-len(head) % 64) + data


def test_stores_of_version_0_1_are_opened(store, tmp_path):
    path = tmp_path / "old.store"
    path.write_bytes(old_bytes(store))
    old = open_store(path)
    assert old.ids == store.ids
    assert old.extra("formula") == store.extra("formula")
    everything = np.arange(len(store))
    for a, b in zip(
        vars(old.select(everything)).values(), vars(store.select(everything)).values(), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b[:-1], "cut short or altered"),
        (lambda b: b[:30], "cut short inside its header"),
        (lambda b: b[:16] + b"x" * 40 + b[56:], "contradicts its header"),
        (lambda b: flip(b, len(b) - 100), "does not match its digest"),
    ],
)
def test_altered_stores_of_version_0_1_are_refused(store, tmp_path, change, words):
    path = tmp_path / "bad.store"
    path.write_bytes(change(old_bytes(store)))
    with pytest.raises(ReadingError, match=words) as caught:
        open_store(path)
    assert "build it again" in str(caught.value)


@pytest.mark.parametrize("entry", [
    {"offset": 10**9}, {"offset": -64}, {"shape": [10**9, 3, 3]}, {"dtype": "|O"}, {"dtype": "?!"},
])  # fmt: skip
def test_an_old_header_that_lies_about_its_arrays_is_refused(store, tmp_path, entry):
    (tmp_path / "lie.store").write_bytes(old_bytes(store, **entry))
    with pytest.raises(ReadingError, match="build it again"):
        open_store(tmp_path / "lie.store")


def test_a_cached_store_of_another_source_is_refused(tmp_path):
    source, cache = write_csv(tmp_path / "a.csv"), tmp_path / "cache.store"
    built = open_or_build(source, cache)
    assert open_or_build(source, cache).header["sha256"] == built.header["sha256"]
    assert open_or_build(cache, tmp_path / "none.store").ids == built.ids
    write_csv(source, rows()[:2])
    with pytest.raises(ReadingError, match=r"another file than .*a\.csv: delete it"):
        open_or_build(source, cache)


def test_a_missing_store_says_what_to_do(tmp_path):
    with pytest.raises(ReadingError, match="does not exist: build it with `crystorus data build`"):
        open_store(tmp_path / "none.store")


def test_a_failed_write_keeps_the_old_store(tmp_path, monkeypatch):
    path = write_csv(tmp_path / "a.csv")
    build_store(path, tmp_path / "a.store")
    before = digest_of(tmp_path / "a.store")

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("crystal_fidelity.files.os.fsync", full_disk)
    write_csv(path, rows()[:2])
    with pytest.raises(FileError, match=r"no space left for .*a\.store"):
        build_store(path, tmp_path / "a.store")
    assert digest_of(tmp_path / "a.store") == before
    assert {p.name for p in tmp_path.iterdir()} == {"a.csv", "a.store"}


HOSTILE_ARRAYS = {
    "n_atoms": lambda a: a * 0,
    "first_atom": lambda a: a - 1,
    "lattice": lambda a: a * np.nan,
    "frac_coords": lambda a: a + 2,
    "atomic_numbers": lambda a: a * 0 + 200,
    "id:end": lambda a: a[::-1] + 10**12,
    "id:text": lambda a: a * 0 + 255,
}


@pytest.mark.parametrize("name", HOSTILE_ARRAYS)
def test_an_honest_digest_does_not_make_crystals_of_any_arrays(tmp_path, name):
    store = build_store(write_csv(tmp_path / "a.csv"), tmp_path / "a.store")
    arrays = {k: np.array(v) for k, v in store.arrays.items()}
    about = {k: v for k, v in store.header.items() if k not in ("sha256", "kind")}
    write_arrays(tmp_path / "b.store", STORE, arrays, about)
    assert len(open_store(tmp_path / "b.store")) == len(store)
    arrays[name] = HOSTILE_ARRAYS[name](arrays[name])
    write_arrays(tmp_path / "b.store", STORE, arrays, about)
    with pytest.raises(ReadingError, match="contradicts its header"):
        open_store(tmp_path / "b.store")


@pytest.mark.parametrize(
    "change",
    [{"extra": {"gap": "float"}}, {"extra": []}, {"skipped": [1]}, {"sources": ["x"]},
     {"crystals": 10**9}, {"n_skipped": "[/x]"}],
)  # fmt: skip
def test_an_honest_digest_does_not_make_a_header_of_any_json(tmp_path, change):
    store = build_store(write_csv(tmp_path / "a.csv"), tmp_path / "a.store")
    about = {k: v for k, v in store.header.items() if k not in ("sha256", "kind")} | change
    write_arrays(tmp_path / "b.store", STORE, store.arrays, about)
    with pytest.raises(ReadingError, match="contradicts its header"):
        open_store(tmp_path / "b.store")


def test_a_folder_is_no_place_for_a_store(tmp_path):
    path = write_csv(tmp_path / "a.csv")
    with pytest.raises(ReadingError, match="is a folder: name a file"):
        build_store(path, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.slow
def test_mp20_is_read_whole(mp20, tmp_path):
    built = build_store(mp20 / "val.csv.gz", tmp_path / "val.store")
    assert len(built) == 9047
    assert built.skipped == []
    assert built.n_atoms.max() == 20
    assert built.extra("formation_energy_per_atom").dtype == np.float64
    everything = built.select(np.arange(len(built)), dtype=torch.float64)
    assert (torch.linalg.det(everything.lattice) > 0).all()
    # The volume each CIF states survives parsing and reduction.
    with gzip.open(mp20 / "val.csv.gz", "rt", newline="") as stream:
        stated = [
            float(row["cif"].split("_cell_volume")[1].split()[0]) for row in csv.DictReader(stream)
        ]
    assert everything.volume.numpy() == pytest.approx(np.array(stated), rel=1e-6)


def test_a_cell_of_too_many_atoms_is_left_out_by_name():
    many = (MOST_ATOMS + 1, 3)
    huge = Crystal(np.eye(3) * 100, np.zeros(many), np.full(many[0], 11), "huge")
    assert usable(huge) == ReadFailure("huge", "it has 20001 atoms, limit 20000")
