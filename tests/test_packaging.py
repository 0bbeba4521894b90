"""What is released says the same everywhere."""

import re
import tomllib
from pathlib import Path

import crystal_fidelity

ROOT = Path(__file__).parents[1]
RECIPE = (ROOT / "packaging/conda/recipe.yaml").read_text()
CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def project(folder):
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]


def test_versions_agree():
    version = project(".")["version"]
    assert crystal_fidelity.__version__ == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f'version: "{version}"' in RECIPE
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_conda_recipe_requires_what_the_packages_do():
    outputs = RECIPE.split("  - package: ")[1:]
    for folder, output in zip(("packages/crystal-fidelity", "."), outputs, strict=True):
        run = output.split("      run:\n")[1].split("    tests:")[0]
        needed = {line.strip(" -") for line in run.splitlines()}
        wanted = project(folder)["dependencies"]
        split = [re.fullmatch(r"([\w-]+)(>=.*)", one).groups() for one in wanted]
        expected = {f"{CONDA.get(name, name)} {limit}" for name, limit in split}
        assert needed == expected | {f"python {project(folder)['requires-python']}"}


def test_the_image_copies_what_is_there():
    for line in (ROOT / "packaging/Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            assert all((ROOT / source).exists() for source in line.split()[1:-1])
