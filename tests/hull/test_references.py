import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

import ase.io
import pytest
from alloys import EMT_PATH, crystorus, l10, l12, table
from ase.build import bulk, make_supercell
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.entries.computed_entries import (
    ComputedEntry,
    ComputedStructureEntry,
    ConstantEnergyAdjustment,
)

from crystal_fidelity import reading
from crystal_fidelity.structures import from_atoms, to_pymatgen
from crystorus.errors import ReferencesError
from crystorus.hull.matching import Comparable, StructureIndex
from crystorus.hull.options import RankOptions
from crystorus.hull.references import (
    check_levels,
    check_span,
    formula_of,
    read_entries,
    read_references,
)

KEY = "k" * 32


def save(path, entries):
    text = json.dumps([e if isinstance(e, dict) else e.as_dict() for e in entries])
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["entries.json", "entries.json.gz"])
def test_entries_have_the_energies_that_pymatgen_gives_them(tmp_path, name):
    structure = Structure(Lattice.cubic(4.2), ["Li", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    entries = [
        ComputedEntry("Li4O2", -28.5, entry_id="plain"),
        ComputedEntry("LiO2", -12.0, correction=-0.7, entry_id="corrected"),
        ComputedEntry(
            "FeO", -13.0, entry_id="adjusted",
            energy_adjustments=[ConstantEnergyAdjustment(-1.25), ConstantEnergyAdjustment(0.5)],
        ),
        ComputedStructureEntry(structure, -9.0, entry_id="with-structure"),
    ]  # fmt: skip
    found, _ = read_entries(save(tmp_path / name, entries))
    assert [f.name for f in found] == [e.entry_id for e in entries]
    for one, entry in zip(found, entries, strict=True):
        assert one.energy_per_atom == pytest.approx(entry.energy_per_atom, abs=1e-12)
    assert [f.atoms is not None for f in found] == [False, False, False, True]
    assert found[3].atoms.get_volume() == pytest.approx(4.2**3)


@pytest.mark.parametrize(
    "changes",
    [
        {"energy": 10**400},
        {"correction": 10**400},
        {"composition": {"Fe": 10**400}},
        {"composition": {"Fe": 1e308, "O": 1e308}},
        {"energy_adjustments": [{"value": 10**400}]},
        {"structure": {"sites": [{"species": [{"element": "Fe"}], "abc": [0, 0, 0]}],
                       "lattice": {"matrix": [[0, 0, 0]] * 3}}},
    ],
)  # fmt: skip
def test_entries_with_absurd_values_are_named_in_one_line(tmp_path, changes):
    entry = {"@class": "ComputedEntry", "composition": {"Fe": 1}, "energy": -1.0}
    with pytest.raises(ReferencesError, match="entry 1 ") as said:
        read_entries(save(tmp_path / "entries.json", [entry | changes]))
    assert len(str(said.value)) < 400


def test_gzipped_entries_that_expand_a_thousandfold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "FREE_SIZE", 1 << 20)
    path = tmp_path / "entries.json.gz"
    path.write_bytes(gzip.compress(b'["' + b"a" * (1 << 24) + b'"]'))
    with pytest.raises(ReferencesError, match="more than 100 times its size"):
        read_entries(path)


def test_a_file_of_entries_cannot_name_a_module_to_import(tmp_path):
    wicked = {"@module": "os", "@class": "system", "command": "true"}
    with pytest.raises(ReferencesError, match="entry 2 is system: only ComputedEntry"):
        read_entries(save(tmp_path / "e.json", [ComputedEntry("Li", -1.0), wicked]))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"[]", "no list"), (b"{", "no JSON"), (b"[3]", "entry 1 is int"),
     (b'[{"@class": "ComputedEntry", "energy": null, "composition": {"Li": 1}}]', "cannot be read"),
     (b'[{"@class": "ComputedEntry", "energy": 1, "composition": {}}]', "no atoms")],
)  # fmt: skip
def test_broken_files_of_entries_are_named(tmp_path, content, words):
    (tmp_path / "e.json").write_bytes(content)
    with pytest.raises(ReferencesError, match=words):
        read_entries(tmp_path / "e.json")


def test_cut_and_missing_files_are_named(tmp_path):
    whole = save(tmp_path / "e.json.gz", [ComputedEntry("Li", -1.0)]).read_bytes()
    (tmp_path / "e.json.gz").write_bytes(whole[:-12])
    with pytest.raises(ReferencesError, match="cut short"):
        read_entries(tmp_path / "e.json.gz")
    for name in ("none.json", "none.csv"):
        with pytest.raises(ReferencesError, match="does not exist"):
            read_references([str(tmp_path / name)], ["Li"], tmp_path)


def test_only_phases_within_the_system_are_taken(tmp_path, alloys):
    found = read_references([str(alloys)], ["Cu", "O"], tmp_path)
    assert [p.name for p in found[0]] == ["fcc-Cu"]


def test_the_missing_element_is_named():
    known = [Composition("Li"), Composition("O2"), Composition("LiFeO2")]
    check_span(known, ["Li", "O"], "they")
    with pytest.raises(ReferencesError, match=r"no elemental phase of Fe\. Add one"):
        check_span(known, ["Li", "Fe", "O"], "they")


def test_levels_are_mixed_only_when_asked():
    check_levels(["a", "a"], mix=False)
    check_levels(["a", "b"], mix=True)
    with pytest.raises(ReferencesError, match="2 levels would meet on one hull: a; b"):
        check_levels(["a", "b"], mix=False)


def test_without_references_the_command_to_get_them_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReferencesError, match="crystorus data get mp-20"):
        RankOptions().sources


def known_phases(*named):
    index = StructureIndex()
    for name, formula, atoms in named:
        index.add(name, atoms and Comparable.of(atoms), formula)
    return index


def test_novelty_has_its_four_answers():
    known = known_phases(("mp-1", "Cu3Au", l12()), ("mp-2", "Cu2Au", None))
    stretched = l12()
    stretched.set_cell(stretched.cell * 1.03, scale_atoms=True)
    found = known.novelty(Comparable.of(stretched))
    assert (found.verdict, found.id) == ("rediscovered", "mp-1")
    assert found.rms == pytest.approx(0.0, abs=1e-6)
    other = l12()
    other.set_cell([5.7, 3.75, 2.5], scale_atoms=True)
    assert known.novelty(Comparable.of(other)).verdict == "new polymorph"
    assert known.novelty(Comparable.of(l12()[[0, 1, 2]])).verdict == "known composition"
    assert known.novelty(Comparable.of(l12()[[0, 1]])).verdict == "not in the references"


def test_a_relaxed_supercell_is_the_phase_that_it_repeats():
    """The matcher alone does not see it, as its own verdict shows."""
    salt = bulk("MgO", "rocksalt", a=4.26)
    known = known_phases(("salt", "MgO", salt))
    large = make_supercell(salt, [[1, 0, 0], [0, 1, 0], [2, 3, 7]])
    large.rattle(0.01, seed=0)
    alone = [to_pymatgen(from_atoms(atoms)) for atoms in (large, salt)]
    assert not StructureMatcher().fit(*alone)
    assert known.novelty(Comparable.of(large)).verdict == "rediscovered"
    large.rattle(0.3, seed=0)
    assert known.novelty(Comparable.of(large)).verdict == "new polymorph"


def test_formulas_of_pymatgen_and_of_crystals_are_spelled_alike():
    assert formula_of(Composition("O8Fe4Li2")) == "LiFe2O4"
    assert formula_of(Composition("Fe0.95O")) == "Fe0.95O1"


def test_a_site_of_a_file_cannot_name_a_module_to_import(tmp_path):
    """pymatgen's decoder imports what `@module` names in a site's properties."""
    (tmp_path / "wicked.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    structure = Structure(Lattice.cubic(4.2), ["Li"], [[0, 0, 0]]).as_dict()
    structure["sites"][0]["properties"] = {"p": {"@module": "wicked", "@class": "Wicked"}}
    entry = ComputedStructureEntry(
        Structure(Lattice.cubic(4.2), ["Li"], [[0, 0, 0]]), -1.0
    ).as_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        found, _ = read_entries(save(tmp_path / "e.json", [entry | {"structure": structure}]))
    assert len(found[0].atoms) == 1
    assert not (tmp_path / "ran").exists()


def test_ids_that_two_files_share_name_their_file(tmp_path, alloys):
    other = alloys.with_name("other.extxyz")
    other.write_text(alloys.read_text().replace("3.75", "3.76"))
    found = read_references([str(alloys), str(other)], ["Cu", "Au"], tmp_path)[0]
    assert [p.name for p in found[:2]] == ["fcc-Cu (alloys.extxyz)", "fcc-Au (alloys.extxyz)"]
    assert len({p.name for p in found}) == len({p.row for p in found}) == 6


@pytest.mark.parametrize("phase", ["Hematite", "B2", "C15", "W"])
def test_a_column_of_formulas_that_names_phases_drops_nothing(tmp_path, phase):
    """Hematite is no helium, B2 no boron; nor are rows parsed that are of other elements."""
    cif = to_pymatgen(from_atoms(bulk("Cu"))).to(fmt="cif").replace('"', "'")
    table = tmp_path / "t.csv"
    rows = f"mp-1,{phase},['Cu'],\"{cif}\"\nmp-2,B2,['B'],no cif at all\n"
    table.write_text("material_id,pretty_formula,elements,cif\n" + rows)
    found, warnings = read_references([str(table)], ["Cu", "Au"], tmp_path)
    assert ([p.name for p in found], warnings) == (["mp-1"], [])


class Recorded(BaseHTTPRequestHandler):
    """Answers as the summary endpoint does, in the shape of its documentation."""

    def do_GET(self):
        server = self.server
        query = parse_qs(urlsplit(self.path).query)
        server.asked.append((urlsplit(self.path).path, query, self.headers.get("x-api-key")))
        if self.headers.get("x-api-key") != KEY:
            self.send_response(401)
            self.end_headers()
            return None
        if server.answer:
            return self.reply(*server.answer)
        if "_page" in query and not server.pages:
            return self.reply(400, json.dumps({"detail": "unknown: _per_page, _page"}))
        page, size = int(query.get("_page", "1")[0]), int(query.get("_per_page", [server.limit])[0])
        systems = query["chemsys"][0].split(",")
        data = [d for d in server.documents if d["chemsys"] in systems]
        body = {"data": data[(page - 1) * size : page * size], "meta": {"total_doc": len(data)}}
        return self.reply(200, json.dumps(body))

    def reply(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments):
        pass


def document(name, structure, *, chemsys, energy=-3.0, deprecated=False):
    return {
        "material_id": name, "chemsys": chemsys, "formula_pretty": structure.reduced_formula,
        "energy_per_atom": energy, "structure": structure.as_dict(), "deprecated": deprecated,
    }  # fmt: skip


@pytest.fixture
def materials_project(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Recorded)
    copper = Structure(Lattice.cubic(3.6), ["Cu"], [[0, 0, 0]])
    server.documents = [
        document("mp-30", copper, chemsys="Cu"),
        document("mp-81", Structure(Lattice.cubic(4.1), ["Au"], [[0, 0, 0]]), chemsys="Au"),
        document("mp-2258", to_pymatgen(from_atoms(l12())), chemsys="Au-Cu"),
        document("mp-9", copper, chemsys="Cu", deprecated=True),
        document("mp-150", Structure(Lattice.cubic(3), ["Fe"], [[0, 0, 0]]), chemsys="Fe"),
    ]
    server.asked, server.answer, server.pages, server.limit = [], None, True, 100
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MP_API_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("MP_API_KEY", KEY)
    monkeypatch.delenv("PMG_MAPI_KEY", raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_the_materials_project_is_asked_for_all_subsystems_and_once(tmp_path, materials_project):
    source = read_references(["materials-project"], ["Cu", "Au"], tmp_path)
    assert [p.name for p in source[0]] == ["mp-30", "mp-81", "mp-2258"]
    assert source[0][2].composition == Composition("Cu3Au")
    assert source[0][2].energy_per_atom == -3.0
    assert len(source[0][2].atoms) == 4
    ((path, query, key),) = materials_project.asked
    assert path == "/materials/summary/"
    assert query["chemsys"] == ["Au,Cu,Au-Cu"]
    assert key == KEY
    again = read_references(["materials-project"], ["Au", "Cu"], tmp_path)
    assert len(materials_project.asked) == 1
    assert [p.row for p in again[0]] == [p.row for p in source[0]]


def test_more_documents_than_a_page_holds_all_come(tmp_path, materials_project):
    copper = materials_project.documents[0]
    materials_project.documents = [copper | {"material_id": f"mp-{i}"} for i in range(1203)]
    source = read_references(["materials-project"], ["Cu", "Au"], tmp_path)
    assert len({p.name for p in source[0]}) == 1203
    assert len(materials_project.asked) == 2


@pytest.mark.parametrize(
    ("key", "words"),
    [("", "MP_API_KEY is not set"), ("short", "has 5 characters"), ("x" * 32, "refuses the key")],
)
def test_trouble_with_the_key_is_named(tmp_path, materials_project, monkeypatch, key, words):
    monkeypatch.setenv("MP_API_KEY", key)
    with pytest.raises(ReferencesError, match=words) as refused:
        read_references(["materials-project"], ["Cu", "Au"], tmp_path)
    assert "x" * 32 not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, "<html>log in</html>"), "not with the JSON of an API"),
        ((200, ""), "not with the JSON of an API"),
        ((200, '{"data": []}'), "lists no phase of Cu-Au"),
        ((403, "no"), "refuses the key"),
        ((429, "slow down"), "try again in a minute"),
        ((502, "<html>bad gateway</html>"), "out of order .HTTP 502.*try again later"),
        ((400, '{"detail": "unknown field chemsys"}'), "HTTP 400.*unknown field chemsys"),
        (
            (200, '{"data": [{"material_id": "mp-1"}], "meta": {"total_doc": 101}}'),
            "1 of 101 phases",
        ),
    ],
)
def test_every_other_answer_of_the_server_is_one_line(tmp_path, materials_project, answer, words):
    materials_project.answer = answer
    with pytest.raises(ReferencesError, match=words) as refused:
        read_references(["materials-project"], ["Cu", "Au"], tmp_path)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_server_without_pages_is_asked_without_them(tmp_path, materials_project):
    materials_project.pages = False
    found = read_references(["materials-project"], ["Cu", "Au"], tmp_path)
    assert len(found[0]) == 3
    materials_project.limit = 2
    with pytest.raises(ReferencesError, match="gave 2 of 4 phases"):
        read_references(["materials-project"], ["Cu", "Au"], tmp_path / "again")


def test_documents_without_structure_or_with_oxidation_states(tmp_path, materials_project):
    gold = Structure(Lattice.cubic(4.1), ["Au"], [[0, 0, 0]])
    gold.add_oxidation_state_by_element({"Au": 1})
    materials_project.documents[1] = document("mp-81", gold, chemsys="Au")
    materials_project.documents.append(materials_project.documents[0] | {"structure": None})
    found = read_references(["materials-project"], ["Cu", "Au"], tmp_path)
    assert [p.name for p in found[0]] == ["mp-30", "mp-81", "mp-2258"]
    assert "1 structures of materials-project cannot be read" in found[1][0]


def test_a_server_that_is_not_there_is_named(tmp_path, materials_project, monkeypatch):
    monkeypatch.setenv("MP_API_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ReferencesError, match="did not answer"):
        read_references(["materials-project"], ["Cu", "Au"], tmp_path)


@pytest.mark.parametrize("mix", [False, True])
def test_phases_of_the_materials_project_are_rediscovered_whatever_their_energies(
    tmp_path, materials_project, mix
):
    phases = {"mp-30": bulk("Cu"), "mp-81": bulk("Au"), "mp-1": l10()}
    materials_project.documents = [
        document(n, to_pymatgen(from_atoms(a)), chemsys="-".join(sorted(set(a.symbols))))
        for n, a in phases.items()
    ]
    ase.io.write(tmp_path / "c.extxyz", [l10(), bulk("Cu", a=3.61)], format="extxyz")
    emt = ("--potential", EMT_PATH, "--workers", 0)
    assert crystorus("relax", tmp_path / "c.extxyz", "--out", tmp_path / "c", *emt).exit_code == 0
    done = crystorus("rank", tmp_path / "c", "--references", "materials-project", "--no-report",
                     *emt, *(["--mix-energy-levels"] if mix else []))  # fmt: skip
    assert done.exit_code == 0, done.output
    found = {row["formula"]: (row["novelty"], row["known_id"]) for row in table(tmp_path / "c")}
    assert found == {"CuAu": ("rediscovered", "mp-1"), "Cu": ("rediscovered", "mp-30")}
