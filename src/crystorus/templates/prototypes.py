"""The AFLOW prototypes that pymatgen carries, as a library that needs no file and no download."""

import functools
from pathlib import Path

from crystal_fidelity.structures import Crystal, from_pymatgen
from crystorus.data.store import store_of, usable
from crystorus.templates.library import TemplateLibrary, library_of

NAME = "AFLOW prototypes"


@functools.cache
def aflow_prototypes() -> TemplateLibrary:
    """Return the prototypes of the AFLOW encyclopedia that pymatgen carries, as templates.

    Source: M. J. Mehl et al., Comput. Mater. Sci. 136, S1 (2017); D. Hicks et al., Comput. Mater.
    Sci. 161, S1 (2019).
    """
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    entries = [
        usable(from_pymatgen(entry["snl"].structure, entry["tags"]["aflow"]))
        for entry in AFLOW_PROTOTYPE_LIBRARY
    ]
    return library_of(store_of([e for e in entries if isinstance(e, Crystal)], Path(NAME)))
