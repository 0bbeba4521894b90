"""Pages that load nothing: one template for every report, and one 3D viewer of crystals in it.

`web/page.html.j2` is the shell with its style; a report fills its blocks. `web/viewer.js` has
`CrystalViewer`, which draws a structure by 3Dmol (BSD), and `StructureTable`, which sorts, filters
and chooses rows.
"""

import json
from collections.abc import Iterable
from importlib import resources
from typing import Any

import numpy as np

from crystal_fidelity.structures import Crystal, element_symbol

FOLDER = "web"
DECIMALS = 5


def structure_data(crystal: Crystal) -> dict[str, Any]:
    """Return what `CrystalViewer.draw` takes of a crystal.

    Args:
        crystal: One crystal.

    Returns:
        `cell`, three rows in Å; `symbols`, one per atom; `frac`, coordinates in [0, 1) as they were
        to five decimals.
    """
    return {
        "cell": np.round(crystal.lattice, DECIMALS).tolist(),
        "symbols": [element_symbol(z) for z in crystal.atomic_numbers.tolist()],
        "frac": np.round(crystal.frac_coords % 1.0, DECIMALS).tolist(),
    }


def element_data(atomic_numbers: Iterable[int]) -> dict[str, list[Any]]:
    """Return covalent radius in Å and Jmol's colour of each element, by its symbol.

    Args:
        atomic_numbers: Of the elements shown.
    """
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors

    found: dict[str, list[Any]] = {}
    for z in sorted(set(atomic_numbers)):
        known = z < len(jmol_colors) and z < len(covalent_radii)
        rgb = (255 * jmol_colors[z]).round().astype(int) if known else (128, 128, 128)
        radius = float(covalent_radii[z]) if known else 1.5
        found[element_symbol(z)] = [round(radius, 2), "#{:02x}{:02x}{:02x}".format(*rgb)]
    return found


def render_page(
    template: str = "page.html.j2",
    *,
    package: str = "crystal_fidelity",
    script: str = "",
    data: object = None,
    **values: object,
) -> str:
    """Return a page that loads nothing from anywhere.

    Args:
        template: Name in the folder `web` of `package`; it may extend `page.html.j2`.
        package: Where template and script lie.
        script: Name of a JavaScript file in that folder, which runs after 3Dmol and `viewer.js`.
            Without it the page has no script and no data.
        data: What `JSON_DATA` holds for the script; no NaN.
        values: What the template names; texts are escaped, `Markup` is not.

    Raises:
        ValueError: `data` holds NaN or infinity.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def load(name: str) -> str:
        folders = (resources.files(room) / FOLDER for room in (package, "crystal_fidelity"))
        return next(f for folder in folders if (f := folder / name).is_file()).read_text("utf-8")

    scripts, text = [], ""
    if script:
        # Neither a name in the data nor 3Dmol itself may end the element that holds it.
        names = ("3Dmol-min.js", "viewer.js", script)
        scripts = [Markup(load(name).replace("</script", "<\\/script")) for name in names]
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    pages = Environment(
        loader=FunctionLoader(load), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    encoded = Markup(text.replace("<", "\\u003c"))
    return pages.get_template(template).render(scripts=scripts, data=encoded, **values)
