"""Run the tutorials, scripts with text in `examples`, and write them as pages of the site.

A page has what the script printed and drew. The script and a notebook lie beside it.

python tools/tutorials.py [NAME ...]
"""

import re
import resource
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build/tutorials"
SETUP = """
import warnings
from matplotlib_inline.backend_inline import set_matplotlib_formats
set_matplotlib_formats("svg")
warnings.filterwarnings("ignore", category=DeprecationWarning)
"""


def run(script: Path, out: Path = OUT) -> Path:
    """Run a script and write its page, notebook and pictures.

    Args:
        script: In jupytext's percent format.
        out: Folder of pages; files that the script writes come into one of its name there.

    Returns:
        The page.

    Raises:
        CellExecutionError: If a cell fails.
    """
    notebook, name = jupytext.read(script), script.stem
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(script, out)
    jupytext.write(notebook, out / f"{name}.ipynb")
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SETUP))
    resources = {"metadata": {"path": str(folder)}}
    settings = {"timeout": 3600, "kernel_name": "python3", "coalesce_streams": True}
    NotebookClient(notebook, resources=resources, **settings).execute()
    del notebook.cells[0]
    for cell in notebook.cells:  # progress and notes are for the terminal
        kept = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]
        if cell.cell_type == "code":
            cell.outputs = kept
    names = {"unique_key": name, "output_files_dir": name}
    text, made = MarkdownExporter().from_notebook_node(notebook, names)
    for path, content in made["outputs"].items():
        (out / path).write_bytes(content)
    text = re.sub(r"(!\[[^]]*\]\()(?=[^/)]+\))", rf"\1{name}/", text)  # pictures it saved itself
    end = f"\n*Download: [script]({name}.py), [notebook]({name}.ipynb).*\n"
    page = out / f"{name}.md"
    page.write_text(text + end, encoding="utf-8")
    return page


def _timed(script: Path) -> str:
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    run(script)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    wall = time.perf_counter() - start
    return f"{script.name}: {processor:.0f} s of processor time, {wall:.0f} s in all"


if __name__ == "__main__":
    chosen = [ROOT / f"examples/{name}.py" for name in sys.argv[1:]]
    # Two at a time; the training, which takes longest, is among the first.
    scripts = chosen or sorted((ROOT / "examples").glob("*.py"), reverse=True)
    with ProcessPoolExecutor(2) as pool:
        for line in pool.map(_timed, scripts):
            print(line, flush=True)
