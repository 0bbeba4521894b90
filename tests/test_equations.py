"""docs/method.md says where every equation of the paper is, and the code agrees."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = ROOT / "src" / "crystorus"
PAGE = (ROOT / "docs" / "method.md").read_text()
EQUATIONS = {f"Eq. {n}" for n in range(1, 21)} - {"Eq. 9"} | {f"Eq. 9{x}" for x in "abc"}
METHOD = ("geometry/", "diffusion/", "networks/")
LABEL = r"(Eq\. \d+[a-c]?|Algorithm \d|Appendix [A-E])"
TAG = re.compile(r"^ *Source: \[Klipfel24\] " + LABEL + r"\b", re.MULTILINE)
ROW = re.compile(
    r"^\| " + LABEL + r" \| [^|]+ \| `([\w/]+\.py)` \| (?:`([\w.]+)` )?\|$", re.MULTILINE
)
CITATION = re.compile(r"\[([A-Z]\w+\d\d\w?)\]")
REFERENCE = re.compile(r"^\| \[(\w+)\] \| .* \| \[10\.\S+\]\(https://doi.org/10\.", re.MULTILINE)


def docstrings(path: Path) -> dict[str, str]:
    """Return the docstrings of a module by qualified name; its own under the empty name."""
    found = {}

    def visit(node: ast.AST, name: str) -> None:
        found[name] = ast.get_docstring(node) or ""
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                visit(child, f"{name}.{child.name}".lstrip("."))

    visit(ast.parse(path.read_text()), "")
    return found


def tags(root: Path = CODE) -> set[tuple[str, str, str]]:
    """Return (label, file, function) of every tag in the code."""
    return {
        (label, str(path.relative_to(root)), name)
        for path in sorted(root.rglob("*.py"))
        for name, text in docstrings(path).items()
        for label in TAG.findall(text)
    }


def test_the_table_is_what_the_code_says():
    rows = {(label, file, name) for label, file, name in ROW.findall(PAGE)}
    assert len(rows) == len(ROW.findall(PAGE))
    assert rows <= tags()
    assert {tag for tag in tags() if tag[1].startswith(METHOD)} <= rows


def test_every_equation_of_the_paper_has_its_place():
    assert {label for label, *_ in tags()} >= EQUATIONS


def test_tags_outside_of_docstrings_would_be_missed():
    """No tag hides where the table cannot name it."""
    everywhere = sum(len(TAG.findall(path.read_text())) for path in CODE.rglob("*.py"))
    assert everywhere == len(tags())


def test_every_reference_is_listed_with_its_doi_and_every_listed_one_is_cited():
    files = (path for part in METHOD for path in (CODE / part).rglob("*.py"))
    cited = {key for path in files for key in CITATION.findall(path.read_text())}
    assert cited == set(REFERENCE.findall(PAGE))


def test_a_wrong_row_is_noticed(tmp_path):
    (tmp_path / "a.py").write_text(
        'def f():\n    """Do.\n\n    Source: [Klipfel24] Eq. 3\n    """\n'
    )
    assert tags(tmp_path) == {("Eq. 3", "a.py", "f")}
