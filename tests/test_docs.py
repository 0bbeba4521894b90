"""The documentation is complete, and what it shows works."""

import doctest
import importlib.util
import inspect
import json
import re
from pathlib import Path

import pytest

from crystorus.config import load_config

griffe = pytest.importorskip("griffe", reason="of the extra docs")

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGES = {"crystorus": "src", "crystal_fidelity": "packages/crystal-fidelity/src"}
TREES = [griffe.load(name, search_paths=[ROOT / path]) for name, path in PACKAGES.items()]
MEANT = [(name, public) for name in PACKAGES for public in importlib.import_module(name).__all__]
"""What the two packages offer under their own names."""
FUNCTIONS = [
    getattr(importlib.import_module(package), name)
    for package, name in MEANT
    if inspect.isfunction(getattr(importlib.import_module(package), name))
]

SHAPE = r"\[[^]]*\]|\([^)]*,[^)]*\)|any shape|One per|one per|, a row each"
"""How a docstring says the shape of an array whose type does not."""
WITH_PYTHON = ("compositions", "refine", "ecosystem")


def public(parent):
    """Return functions and classes without an underscore, those of classes included."""
    found = []
    for name, member in parent.members.items():
        if name.startswith("_") or member.is_alias:
            continue
        if member.is_function or member.is_class:
            found.append(member)
        if member.is_class or member.is_module:
            found += public(member)
    return found


def test_every_public_name_has_a_docstring():
    """The pages of modules show all of them."""
    names = [member for tree in TREES for member in public(tree)]
    assert len(names) > 700
    assert [member.path for member in names if not member.docstring] == []


def parts_of(docstring):
    """Return the summary of a docstring and its sections."""
    sections = griffe.Docstring(docstring.value).parse("google")
    return sections[0].value, {section.kind.value: section.value for section in sections[1:]}


def test_every_paragraph_of_a_docstring_is_shown_as_one():
    """Google's style takes `Source: x`, with an indented line below, for a box with the title x."""
    members = [m for tree in TREES for m in (*modules_of(tree), *public(tree))]
    boxes = [m.path for m in members if m.docstring and "admonition" in parts_of(m.docstring)[1]]
    assert boxes == []


FUNCTIONS_OF_MODULES = {
    member.path: member
    for tree in TREES
    for member in public(tree)
    # Options of commands are written on their pages, from where they are declared.
    if member.is_function and member.path.split(".")[1] != "cli"
}


def documented_arguments(member):
    """Return the arguments that a docstring, or the one it points to, describes."""
    _, parts = parts_of(member.docstring)
    found = {item.name.strip("*") for item in parts.get("parameters", [])}
    pointed = re.search(r"(?:Args|arguments)[^`.]*those of\s+`(\w+)`", member.docstring.value)
    if not pointed:
        return found
    # Of the same name in a class (`CellProcess`), or a function beside it (`trajectory`).
    ends = (f".{pointed[1]}.{member.name}", f".{pointed[1]}")
    others = [f for path, f in FUNCTIONS_OF_MODULES.items() if path.endswith(ends)]
    assert others, member.path
    besides = re.findall(r"`(\w+)`", member.docstring.value)
    return found.union(besides, *map(documented_arguments, others))


@pytest.mark.parametrize("path", FUNCTIONS_OF_MODULES)
def test_every_public_function_says_what_it_takes_and_gives(path):
    member = FUNCTIONS_OF_MODULES[path]
    summary, parts = parts_of(member.docstring)
    named = {p.name for p in member.parameters if p.name not in {"self", "cls"}}
    named = {name for name in named if not name.startswith("_")}
    assert named <= documented_arguments(member)
    assert summary.split("\n")[0].rstrip().endswith((".", "?")) or "\n" in summary
    assert member.returns is not None
    if re.match(r"tuple\[(?!.*\.\.\.)", str(member.returns)):  # of several things
        assert parts.keys() & {"returns", "yields"} or re.search("[Rr]eturn|result are", summary)
    for item in parts.get("parameters", []):
        annotated = next(p.annotation for p in member.parameters if p.name == item.name.strip("*"))
        if re.match(r"(NDArray|Array|np\.ndarray|Tensor)\b", str(annotated)):  # no shape in it
            assert re.search(SHAPE, item.description + summary), item.name


def check_site():
    """Import the script that looks at a built site."""
    path = ROOT / "tools/check_site.py"
    spec = importlib.util.spec_from_file_location("check_site", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_site_with_empty_blocks_of_documentation_does_not_pass(tmp_path):
    """Two pages of the reference once had names of settings without a word on them."""
    page = '<h1>a</h1><div class="doc doc-contents {}">{}</div>'
    (tmp_path / "a.html").write_text(page.format("first", "<p>Words.</p>"))
    assert check_site().problems(tmp_path) == []
    (tmp_path / "b.html").write_text(page.format("", "\n\n"))
    assert check_site().problems(tmp_path) == ["b.html shows 1 names without a text"]


def test_how_many_public_functions_there_are():
    """So that the test above cannot pass for want of functions."""
    assert len(FUNCTIONS_OF_MODULES) > 600


def reference(path, text):
    """Yield the names with a dot in backticks that look like those of a module that lacks them."""
    tree = next(tree for tree in TREES if path.startswith(tree.name))
    modules = {m.path.partition(".")[2]: m for m in modules_of(tree)}
    for name in re.findall(r"`([a-z_.]+\.\w+)`", text):
        module, _, member = name.removeprefix(f"{tree.name}.").rpartition(".")
        if module in modules and member not in (*modules[module].members, "js"):
            yield f"{path}: {name}"


def modules_of(tree):
    """Return a package and all modules in it."""
    return [tree, *(m for one in tree.modules.values() for m in modules_of(one))]


def test_functions_that_docstrings_name_are_there():
    """A reader was once sent to `featurizers.model_energies`, which was none."""
    wrong = [
        name
        for tree in TREES
        for module in modules_of(tree)
        for name in reference(module.path, "\n".join(module.lines))
    ]
    assert wrong == []
    gone = reference("crystal_fidelity.energies", "see `distances.model_energies`")
    assert list(gone) == ["crystal_fidelity.energies: distances.model_energies"]


@pytest.mark.parametrize(("package", "name"), MEANT)
def test_every_name_of_the_packages_is_on_the_page_of_the_interface(package, name):
    page = (DOCS / "reference/python.md").read_text()
    home = getattr(importlib.import_module(package), name).__module__
    section = page.split(f"::: {home}", 1)[1].split("\n:::")[0].splitlines()
    assert section[0] == f".{name}" or re.search(rf"members: \[.*\b{name}\b", section[1])


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_the_interface_documents_arguments_and_errors(function):
    text = inspect.getdoc(function)
    parts = {
        section.kind.value: section.value for section in griffe.Docstring(text).parse("google")
    }
    options = {"generate", "refine"}  # theirs are documented where they are declared
    own = inspect.getfullargspec(function)
    named = set(own.args + own.kwonlyargs) if function.__name__ not in options else set()
    documented = {item.name for item in parts["parameters"]}
    assert named <= documented
    if re.search(r"^    raise ", inspect.getsource(function), re.MULTILINE):
        assert "raises" in parts


def shown():
    """Return what pages offer or import, by module and name, but for errors."""
    found = set(MEANT)
    for page in ("python", "settings"):
        text = (DOCS / f"reference/{page}.md").read_text()
        for home, names in re.findall(r"::: ([\w.]+)\n.*?members: \[([^]]*)\]", text):
            found |= {(home, name.strip()) for name in names.split(",")}
    readme = ROOT / "packages/crystal-fidelity/README.md"
    pages = [*(ROOT / "examples").glob("*.py"), *DOCS.rglob("*.md"), ROOT / "README.md", readme]
    for text in map(Path.read_text, pages):
        for home, names in re.findall(r"from (crystorus[\w.]*|crystal_f[\w.]*) import (.+)", text):
            found |= {(home, name.strip()) for name in names.split(";")[0].split(",")}
        found |= {*re.findall(r"`((?:crystorus|crystal_fidelity)\.[\w.]+)\.(\w+)\(", text)}
    members = {getattr(importlib.import_module(home), name) for home, name in found}
    errors = {m for m in members if inspect.isclass(m) and issubclass(m, Exception)}
    named = {m for m in members - errors if inspect.isfunction(m) or inspect.isclass(m)}
    return sorted(named, key=lambda member: member.__name__)


# A base class, and sections of a configuration, which `load_config` reads.
PARTS = re.compile("RunOptions|(?!Sampler).*Config")
SHOWN = [member for member in shown() if not PARTS.fullmatch(member.__name__)]


def test_how_many_names_the_pages_show():
    assert len(SHOWN) >= 30


@pytest.mark.parametrize("member", [m for m in SHOWN if inspect.isclass(m)])
def test_every_field_of_a_class_that_pages_show_is_explained(member):
    package = member.__module__.split(".")[0]
    tree = next(tree for tree in TREES if tree.name == package)
    shown = tree[f"{member.__module__}.{member.__name__}".partition(".")[2]]
    listed = {item.name for item in parts_of(shown.docstring)[1].get("attributes", [])}
    fields = [m for m in shown.members.values() if m.is_attribute and m.name[0] != "_"]
    assert fields
    assert [f.name for f in fields if not f.docstring and f.name not in listed] == []


@pytest.mark.parametrize("member", SHOWN, ids=lambda member: member.__name__)
def test_every_name_that_pages_show_has_an_example_that_holds(member, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(member.__module__)
    found = doctest.DocTestFinder(recurse=False).find(
        member, member.__name__, globs=vars(module).copy()
    )
    assert found[0].examples
    assert doctest.DocTestRunner().run(found[0]).failed == 0


@pytest.mark.slow
@pytest.mark.parametrize("page", ["start", *(f"how-to/{n}" for n in WITH_PYTHON)])
def test_the_python_of_the_pages_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    code = re.findall(r"^```python\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.M | re.S)
    assert code
    for block in code:
        if "jobflow" in block:
            pytest.importorskip("jobflow")
        exec(block, names)  # noqa: S102
    if page == "how-to/ecosystem":
        write = names["write_structures"]
        answers = [optimade_answer(["Mg", "O"], mixed=mixed) for mixed in (False, True)]
        assert write(answers, "a.extxyz") == 1
        import ase.io

        assert ase.io.read("a.extxyz").get_chemical_formula() == "MgO"


def optimade_answer(symbols, *, mixed=False):
    """Return a structure as OPTIMADE servers answer it, checked by the client's models if here."""
    species = [
        {"name": s, "chemical_symbols": [s, "vacancy"] if mixed else [s],
         "concentration": [0.5, 0.5] if mixed else [1.0]}
        for s in symbols
    ]  # fmt: skip
    attributes = {
        "elements": sorted(symbols), "nelements": 2, "elements_ratios": [0.5, 0.5],
        "chemical_formula_descriptive": "MgO", "chemical_formula_reduced": "MgO",
        "chemical_formula_anonymous": "AB", "dimension_types": [1, 1, 1],
        "nperiodic_dimensions": 3, "nsites": 2, "species": species, "species_at_sites": symbols,
        "lattice_vectors": [[0, 2.1, 2.1], [2.1, 0, 2.1], [2.1, 2.1, 0]],
        "cartesian_site_positions": [[0, 0, 0], [2.1, 2.1, 2.1]],
        "structure_features": ["disorder"] if mixed else [],
        "last_modified": "2026-11-29T00:00:00Z", "immutable_id": None,
    }  # fmt: skip
    entry = {"id": "x-1", "type": "structures", "attributes": attributes}
    try:
        from optimade.models import StructureResource
    except ImportError:
        return entry
    return json.loads(StructureResource(**entry).model_dump_json())


def test_every_tutorial_is_a_page_with_a_heading():
    nav = (ROOT / "mkdocs.yml").read_text()
    for script in sorted((ROOT / "examples").glob("*.py")):
        assert f"tutorials/{script.stem}.md" in nav
        assert re.search(r"^# %% \[markdown\]\n# # ", script.read_text(), re.MULTILINE)


def test_the_model_card_is_of_the_weights_that_ship():
    folder = ROOT / "src/crystorus/weights/mp20"
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    data = (folder / "card.json").read_text()
    stored = json.loads(data)
    assert stored["sha256"][:12] in card
    assert f"{len(stored['trained_elements'])} elements" in card
    for name in ("card", "scorer"):
        measured = json.loads((folder / f"{name}.json").read_text())["card"]["validation"]
        assert f"{measured['model']['match_percent_all']:.1f} %" in card
    named = re.findall(r"tools/\w+\.py(?! of commit)", data)
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("name", sorted(p.name for p in (DOCS / "figures").iterdir()))
def test_pictures_are_small(name):
    assert (DOCS / "figures" / name).stat().st_size < 300_000


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_of_code_fit_the_page(page):
    """A window of 1280 pixels shows 96 characters; the end of a longer line is out of sight."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    long = [line for block in blocks for line in block.splitlines() if len(line) > 96]
    assert [line for line in long if len(line.split()) > 3] == []  # what can be broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_one_title(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1


def test_the_configuration_of_the_page_on_training_is_one(tmp_path):
    page = (DOCS / "how-to/training.md").read_text()
    (tmp_path / "mine.toml").write_text(re.search(r"```toml\n(.*?)```", page, re.DOTALL)[1])
    shown, ours = (load_config(p) for p in (tmp_path / "mine.toml", ROOT / "configs/default.toml"))
    for name in ("learning_rate", "warmup_steps", "decay", "symmetric_fraction"):
        assert getattr(shown.training, name) == getattr(ours.training, name)


def test_the_words_of_the_glossary_are_in_order_and_explained_once():
    page = (DOCS / "glossary.md").read_text()
    words = re.findall(r"^\|[^|]*\*\*(.+?)\*\* \|", page, re.MULTILINE)
    assert len(words) > 50
    lower = [word.lower() for word in words]
    assert lower == sorted(set(lower))
    for word in ("MP-20", "EMD", "RMSE", "METRe", "Fréchet distance", "S.U.N.", "CHGNet", "EMT"):
        assert any(word in explained for explained in words)
