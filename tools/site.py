"""What the documentation site (`mkdocs.yml`) is made from beside the files of `docs`.

Commands come from the option dataclasses, modules from their docstrings, tutorials from scripts
that `tools/tutorials.py` ran; equations become MathML, which every browser draws by itself.
"""

import importlib
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS, TUTORIALS = ROOT / "docs", ROOT / "build/tutorials"
PACKAGES = {"crystorus": "src", "crystal_fidelity": "packages/crystal-fidelity/src"}
PROGRAMS = {"crystorus": "crystorus.cli", "crystal-fidelity": "crystal_fidelity.cli"}
MODEL_CARD = ROOT / "src/crystorus/weights/mp20/README.md"
MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
PAGE_NAME = re.compile(r"(?<!\[)`(?:docs/)?([\w-]+\.md)`")
EQUATION_ROW = re.compile(r"^(\| [^|]+ \| [^|]+ \|) `([\w/]+)\.py` \| `([\w.]+)` ", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages to those of `docs`."""
    pages = {
        "index.md": (ROOT / "README.md").read_text(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(),
        "reference/model-card.md": MODEL_CARD.read_text().split("\n---\n", 1)[1],
    }
    moved = {str(MODEL_CARD.relative_to(ROOT)): "reference/model-card.md"}
    moved |= {"](CONTRIBUTING.md": "](contributing.md"}
    for path, text in pages.items():
        pages[path] = re.sub(r'(\]\(|src=")docs/', r"\1", text)
        for old, new in moved.items():
            pages[path] = pages[path].replace(old, new)
    for name, module in PROGRAMS.items():
        pages[f"reference/{name}.md"] = command_page(module)
    trees = [griffe.load(package, search_paths=[ROOT / path]) for package, path in PACKAGES.items()]
    modules = [module for tree in trees for module in modules_of(tree)]
    pages["reference/modules.md"] = module_list(modules)
    for module in modules:
        # Found last, or pages written to be read would stand behind lists of functions.
        pages[f"reference/modules/{module.path}.md"] = (
            f"---\nsearch:\n  boost: 0.1\n---\n# {module.path}\n\n[All modules](../modules.md)\n\n"
            f"::: {module.path}\n"
            "    options: {show_root_heading: false, show_root_toc_entry: false}\n"
        )
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    shown = {".md", ".py", ".ipynb", ".svg", ".png", ".gif"}
    for path in sorted(p for p in TUTORIALS.glob("**/*.*") if p.suffix in shown):
        name = f"tutorials/{path.relative_to(TUTORIALS)}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def command_page(module: str) -> str:
    """Return the commands of a program with all their options, from where they are declared."""
    app = importlib.import_module(module).app
    text = app.generate_docs(output_format="markdown", recursive=True)
    text = re.sub(r"\n {8}(?=\S)", " ", text)  # docstrings go over several lines
    return re.sub(r"## Table of Contents\n.*?(?=\n\*\*Commands)", "", text, flags=re.DOTALL)


def modules_of(module: griffe.Module) -> list[griffe.Module]:
    """Return a module and those in it, without `__main__`."""
    inner = [m for m in module.modules.values() if not m.is_alias and m.name != "__main__"]
    return [module, *(found for m in inner for found in modules_of(m))]


def module_list(modules: list[griffe.Module]) -> str:
    """Return a table of all modules, each with the first line of its docstring."""
    rows = [
        f"| [`{m.path}`](modules/{m.path}.md) | {m.docstring.value.splitlines()[0]} |"
        for m in modules
        if m.docstring
    ]
    head = "# All modules\n\nEvery public function and class, with arguments, units and errors.\n\n"
    return head + "\n".join(["| module | what it does |", "|---|---|", *rows]) + "\n"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn names of pages, and places of equations, into links."""
    here = posixpath.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        target = DOCS / match[1]
        if not target.is_file():
            return match[0]
        title = re.search(r"^# (.+)$", target.read_text(), re.MULTILINE)
        return f"[{title[1] if title else match[1]}]({posixpath.relpath(match[1], here)})"

    if page.file.src_uri == "method.md":
        markdown = EQUATION_ROW.sub(equation_link, markdown)
    if page.file.src_uri == "changelog.md":  # of earlier versions, too
        return markdown
    return PAGE_NAME.sub(link, markdown)


def equation_link(row: re.Match[str]) -> str:
    """Link a row of the table of equations to the documentation of the function."""
    module = "crystorus." + row[2].replace("/", ".").removesuffix(".__init__")
    public = [part for part in row[3].split(".") if not part.startswith("_")]
    anchor = ".".join([module, *public])
    return f"{row[1]} `{row[2]}.py` | [`{row[3]}`](reference/modules/{module}.md#{anchor}) "


def on_page_content(html: str, **_: Any) -> str:
    """Write equations as MathML."""

    def mathml(match: re.Match[str]) -> str:
        return convert(match[2].strip(), display="inline" if match[1] == "span" else "block")

    html = re.sub(r"(?<=\d) (?=\d{3}\b|%)", "\u00a0", html)  # 1 000, 56.0 %
    # An option is not broken after its hyphens; a longer line of them is wider than a telephone.
    html = re.sub(r"<code>(?=-[^<]{1,40}</code>)", '<code class="option">', html)
    html = re.sub(r"\n(?=(?:Source|Deviation): )", "<br>\n", html)  # a line each, as in the code
    return MATH.sub(mathml, html)
