"""Figures: right colours, right sizes, the same bytes for the same crystals."""

import json

import numpy as np
import pytest
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from matplotlib.collections import PathCollection
from prototypes import all_prototypes

from crystorus.data.io import crystals_to_atoms
from crystorus.reproduction import drawing
from crystorus.reproduction.drawing import (
    Gallery,
    draw_crystal,
    draw_gallery,
    formula_text,
    group_text,
    save_figure,
)
from crystorus.reproduction.portraits import portrait
from crystorus.reproduction.records import from_json, to_json

NAMES = ("rocksalt", "left_handed", "hcp", "triclinic")
PORTRAITS = tuple(portrait(crystals_to_atoms(all_prototypes()[n])[0]) for n in NAMES)
GALLERY = Gallery(("generated", "real"), (PORTRAITS[1:], PORTRAITS[:0:-1]))


def outlined(figure) -> list[tuple[float, np.ndarray]]:
    """Radius in Å and colour of every ball: its first disc is the one with a rim."""
    (collection,) = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    widths, faces = collection.get_linewidths(), collection.get_facecolors()
    return [
        (path.get_extents().width / 2, face[:3])
        for path, width, face in zip(collection.get_paths(), widths, faces, strict=True)
        if width == 0.45
    ]


def test_atoms_have_jmols_colours_and_covalent_sizes():
    balls = outlined(draw_crystal(PORTRAITS[0]))
    assert len(balls) == 27
    for z, count in ((11, 14), (17, 13)):
        radius = drawing.RADIUS * covalent_radii[z]
        colours = np.array([c for r, c in balls if abs(r - radius) < 1e-3 * radius])
        assert len(colours) == count
        rim = 0.72 * jmol_colors[z]
        fog = (colours - rim) / (1 - rim)
        assert np.ptp(fog, axis=1).max() < 1e-6  # the element's colour mixed with white
        assert fog.min() >= 0
        assert fog.max() <= drawing.FOG + 1e-9


def test_what_is_nearer_is_painted_later():
    bodies = drawing._scene(PORTRAITS[1]).bodies
    depths = [body.depth for body in bodies]
    assert depths == sorted(depths)
    assert depths[0] < depths[-1]


def test_a_gallery_names_rows_formulas_groups_and_tolerance():
    texts = [t.get_text() for t in draw_gallery(GALLERY).texts]
    assert {"generated", "real", "Mg", "SiO$_{2}$", "$P6_{3}/mmc$"} <= set(texts)
    assert any("0.1 Å" in text for text in texts)
    # A row of another composition says so.
    assert any("$_{4}$, " in text for text in texts)


def test_no_two_texts_overlap():
    figure = draw_gallery(GALLERY)
    figure.canvas.draw()
    boxes = [t.get_window_extent() for t in figure.texts]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_the_same_gallery_gives_the_same_bytes_also_after_json(tmp_path):
    again = from_json(Gallery, json.loads(json.dumps(to_json(GALLERY))))
    assert again == GALLERY
    first = save_figure(draw_gallery(GALLERY), tmp_path / "a")
    second = save_figure(draw_gallery(again), tmp_path / "b")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    changed = Gallery(GALLERY.names, GALLERY.rows[::-1])
    third = save_figure(draw_gallery(changed), tmp_path / "c")
    assert third[0].read_bytes() != first[0].read_bytes()


def test_rows_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match=r"rows of \[3, 4\] crystals"):
        draw_gallery(Gallery(("generated", "real"), (PORTRAITS, PORTRAITS[1:])))


def test_symbols_are_set_as_printed():
    assert formula_text("Li2Fe12O") == "Li$_{2}$Fe$_{12}$O"
    assert group_text("P6_3/mmc") == "$P6_{3}/mmc$"
    assert group_text("Fm-3m") == r"$Fm\bar{3}m$"
