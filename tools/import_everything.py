"""Import every module of both packages that needs no extra, and name those that cannot be."""

import importlib
import pkgutil
import sys

EXTRAS = {"chgnet", "matplotlib", "distributed", "smact", "matminer", "sklearn", "tensorboard"}


def main() -> int:
    """Return the number of modules that failed."""
    failed = 0
    for package in ("crystal_fidelity", "crystorus"):
        where = importlib.import_module(package).__path__
        for found in pkgutil.walk_packages(where, f"{package}."):
            if found.name.endswith("__main__"):
                continue
            try:
                importlib.import_module(found.name)
            except ImportError as error:
                if (error.name or "").split(".")[0] not in EXTRAS:
                    failed += 1
                    sys.stderr.write(f"{found.name}: {error}\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
