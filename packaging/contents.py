"""Look into wheels and sdists: every file of the source, versions, sizes, nothing else.

python packaging/contents.py build/dist
"""

import re
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parents[1]
LARGEST = {"crystorus": 14e6, "crystal_fidelity": 2e6}
"""Bytes of an archive; the weights are ten million of them."""
SOURCES = {"crystorus": "src", "crystal_fidelity": "packages/crystal-fidelity/src"}
UNWANTED = re.compile(r"^(build|runs|out|data|\.venv|\.git)/|__pycache__|\.(ckpt|pkl|pyc|db)$")


def main(folder: Path) -> int:
    """Print what each archive is, and return the number of faults."""
    faults, versions = [], set()
    for path in sorted(folder.iterdir()):
        wheel = path.suffix == ".whl"
        package = path.name.split("-")[0]
        if wheel:
            with zipfile.ZipFile(path) as archive:
                names = set(archive.namelist())
                text = archive.read(next(n for n in names if n.endswith("/METADATA"))).decode()
        else:
            with tarfile.open(path) as archive:
                top = archive.getnames()[0].split("/")[0]
                names = {name.removeprefix(f"{top}/") for name in archive.getnames()}
                text = archive.extractfile(f"{top}/PKG-INFO").read().decode()
        metadata = Parser().parsestr(text)
        versions.add(metadata["Version"])
        source, prefix = ROOT / SOURCES[package], "" if wheel else "src/"
        files = [p for p in (source / package).rglob("*") if p.is_file() and p.suffix != ".pyc"]
        needed = [p.relative_to(source).as_posix() for p in files]
        faults += [f"{path.name}: no {name}" for name in needed if prefix + name not in names]
        faults += [f"{path.name}: has {n}" for n in names if UNWANTED.search(n)]
        if wheel and not any("licenses/" in name for name in names):
            faults.append(f"{path.name}: no licence")
        if path.stat().st_size > LARGEST[package]:
            faults.append(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB is too large")
        print(
            f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, {len(names)} files, "
            f"Python {metadata['Requires-Python']}, licence {metadata['License-Expression']}"
        )
    if len(versions) != 1:
        faults.append(f"versions differ: {', '.join(sorted(versions))}")
    print("\n".join(faults))
    return len(faults)


if __name__ == "__main__":
    sys.exit(min(main(Path(sys.argv[1])), 1))
