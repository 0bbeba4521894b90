"use strict";
// What the reports share: a viewer of one crystal with its panel, a table of many, and files saved from the page.
// JSON_DATA is the data of the report; a structure is {cell: 3 rows in Å, symbols, frac: [[x, y, z], …]} and may have
// `conventional`, the same crystal in its conventional cell.
const JSON_DATA = JSON.parse(document.getElementById("data").textContent);
const lowered = (formula) => formula.replace(/\d/g, (digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]);
// A number with its sign and never "-0.000"; nothing for null.
const signed = (value, digits = 3, unit = "") => {
  if (value === null || value === undefined) return "";
  const text = Math.abs(value).toFixed(digits);
  return (Number(text) === 0 || value > 0 ? "+" : "−") + text + unit;
};
const byId = (id) => document.getElementById(id);
const element = (tag, values = {}, ...inside) => { const made = Object.assign(document.createElement(tag), values); made.append(...inside); return made; };
const cartesian = (cell, frac) => [0, 1, 2].map((k) => frac[0] * cell[0][k] + frac[1] * cell[1][k] + frac[2] * cell[2][k]);
const METALLOIDS_AND_NONMETALS = new Set(["H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Se", "Br", "I", "As", "Te", "Ge"]);

class CrystalViewer {
  // elements: {symbol: [covalent radius in Å, colour]}
  constructor(place, elements) {
    this.elements = elements;
    this.scene = null;
    try {
      this.scene = $3Dmol.createViewer(place, { backgroundColor: "white", antialias: true });
    } catch (error) {
      place.textContent = "This browser has no WebGL: structures cannot be drawn.";
    }
  }
  clear() {
    if (!this.scene) return;
    this.empty();
    this.scene.render();
  }
  empty() {
    this.scene.removeAllModels();
    this.scene.removeAllShapes();
    this.scene.removeAllLabels();
  }
  resize() { if (this.scene) this.scene.resize(); }
  // times: cells along each direction; keepView: do not turn or zoom; bonds: draw them
  draw(structure, { keepView = false, bonds = true, times = 1 } = {}) {
    if (!this.scene) return;
    this.empty();
    const point = (frac) => { const [x, y, z] = cartesian(structure.cell, frac); return { x, y, z }; };
    const atoms = CrystalViewer.inCell(structure, times).map(([symbol, frac], i) => ({ elem: symbol, ...point(frac), serial: i, index: i, bonds: [], bondOrder: [] }));
    if (bonds && atoms.length < 900) this.bond(atoms);
    this.scene.addModel().addAtoms(atoms);
    this.scene.setStyle({}, { sphere: { scale: 0.28, colorscheme: "Jmol" }, stick: { radius: 0.1, colorscheme: "Jmol" } });
    for (let k = 0; k < 3; k++) for (const p of [0, times]) for (const q of [0, times]) {
      const from = [0, 0, 0], to = [0, 0, 0];
      from[(k + 1) % 3] = to[(k + 1) % 3] = p;
      from[(k + 2) % 3] = to[(k + 2) % 3] = q;
      to[k] = times;
      this.scene.addCylinder({ start: point(from), end: point(to), radius: 0.035, color: "#444" });
    }
    this.axes(structure.cell);
    if (!keepView) {
      this.scene.setView([0, 0, 0, 0, 0, 0, 0, 1]);
      // c upright, a to the front, b to the right: no two axes of a common cell on one line.
      this.scene.rotate(-70, "x");
      this.scene.rotate(-50, "z");
      this.scene.zoomTo();
      this.scene.zoom(0.9);
    }
    this.scene.render();
  }
  // Directions of the lattice vectors as arrows beside the cell, with their names.
  axes(cell) {
    const unit = cell.map((vector) => vector.map((x) => x / Math.hypot(...vector)));
    const corner = [0, 1, 2].map((k) => -2.8 * unit[1][k] - 0.6 * unit[2][k]);
    unit.forEach((vector, i) => {
      const color = ["#c8102e", "#1b7a2f", "#1f4fbf"][i];
      const at = (r) => { const [x, y, z] = corner.map((from, k) => from + r * vector[k]); return { x, y, z }; };
      this.scene.addArrow({ start: at(0), end: at(1.6), radius: 0.08, radiusRatio: 2.2, mid: 0.7, color });
      this.scene.addLabel("abc"[i], { position: at(2.1), fontColor: color, fontSize: 16, showBackground: false, inFront: true, alignment: "center" });
    });
  }
  // Atoms on a face are drawn on the opposite one too.
  static inCell({ symbols, frac }, times) {
    const shifts = (x) => {
      const all = [];
      for (let n = 0; n <= times; n++) if (x + n <= times + 0.02) all.push(x + n);
      if (x > 0.98) all.unshift(x - 1);
      return all;
    };
    const drawn = [];
    symbols.forEach((symbol, i) => {
      for (const a of shifts(frac[i][0])) for (const b of shifts(frac[i][1])) for (const c of shifts(frac[i][2])) drawn.push([symbol, [a, b, c]]);
    });
    return drawn;
  }
  bond(atoms) {
    const metal = (symbol) => !METALLOIDS_AND_NONMETALS.has(symbol), radius = (atom) => this.elements[atom.elem][0];
    atoms.forEach((a, i) => atoms.slice(0, i).forEach((b, j) => {
      const d = Math.hypot(a.x - b.x, a.y - b.y, a.z - b.z);
      if (d > 0.4 && d < 1.15 * (radius(a) + radius(b)) && !(metal(a.elem) && metal(b.elem))) {
        a.bonds.push(j); a.bondOrder.push(1);
        b.bonds.push(i); b.bondOrder.push(1);
      }
    }));
  }
}

// A crystal with its name, legend, cell and buttons: conventional cell, 2×2×2, files.
class CrystalPanel {
  constructor(place, elements, heading = "Structure") {
    Object.assign(this, { elements, structure: null, options: {}, times: 1, conventional: true, viewer: null });
    const button = (text, act) => { const made = element("button", { textContent: text }); made.addEventListener("click", act); return made; };
    this.title = element("h2", { textContent: heading });
    this.scene = element("div", { className: "scene" });
    this.buttons = {
      conventional: button("conventional cell", () => { this.conventional = !this.conventional; this.redraw(); }),
      times: button("2×2×2", () => { this.times = 3 - this.times; this.redraw(); }),
      cif: button("save CIF", () => saveFile(cifText(this.shown(), this.options.name), `${this.options.name}.cif`, "chemical/x-cif")),
      png: button("save PNG", () => this.viewer && savePicture(this.viewer.scene.pngURI(), `${this.options.name}.png`)),
    };
    this.controls = element("div", { className: "controls" }, ...Object.values(this.buttons));
    this.legend = element("p", { className: "legend" });
    this.cell = element("p", { className: "hint" });
    this.facts = element("dl", { className: "facts" });
    place.replaceChildren(this.title, this.scene, this.legend, this.controls, this.cell, this.facts);
    addEventListener("resize", () => this.viewer && this.viewer.resize());
    this.show(null, { title: heading });
  }
  shown() { return (this.conventional && this.structure.conventional) || this.structure; }
  // name: of the saved files; title: text; facts: pairs of texts; the rest goes to CrystalViewer.draw
  show(structure, options) {
    this.structure = structure;
    this.options = { ...this.options, keepView: false, bonds: true, ...options };
    this.title.textContent = this.options.title;
    const terms = (this.options.facts || []).map(([term, text]) => [element("dt", { textContent: term }), element("dd", { textContent: text })]);
    this.facts.replaceChildren(...terms.flat());
    for (const part of [this.scene, this.controls, this.legend, this.cell]) part.hidden = !structure;
    if (structure) this.redraw(this.options.keepView);
  }
  redraw(keepView = false) {
    const structure = this.shown();
    this.viewer = this.viewer || new CrystalViewer(this.scene, this.elements);
    this.viewer.resize();
    this.viewer.draw(structure, { ...this.options, keepView, times: this.times });
    this.buttons.conventional.hidden = !this.structure.conventional;
    this.buttons.conventional.setAttribute("aria-pressed", String(this.conventional));
    this.buttons.times.setAttribute("aria-pressed", String(this.times === 2));
    const dot = (symbol) => element("span", { textContent: "●", style: `color:${this.elements[symbol][1]}` });
    this.legend.replaceChildren(...[...new Set(structure.symbols)].map((symbol) => element("span", {}, dot(symbol), " " + symbol)));
    const p = cellParameters(structure), fixed = (values, digits) => values.map((v) => v.toFixed(digits)).join("  ");
    const which = this.structure.conventional ? (this.conventional ? "conventional cell: " : "cell as made: ") : "";
    this.cell.textContent = `${which}${structure.symbols.length} atoms,  a b c ${fixed(p.slice(0, 3), 3)} Å,  α β γ ${fixed(p.slice(3), 1)}°,  ${(volume(structure) / structure.symbols.length).toFixed(2)} Å³/atom`;
  }
}

class StructureTable {
  // columns: [{key, label, number, text: row → shown, fill: (td, row) → nothing}], sorted by row[key];
  // name: row → what identifies it; choose: called with a row; kind: row → class of its line
  constructor({ table, filter, count, rows, columns, name, choose, kind = () => "", searched = null, limit = 2000 }) {
    Object.assign(this, { table, filter, count, rows, columns, name, choose, kind, limit });
    this.order = [null, 1];
    this.chosen = null;
    const words = searched || ((row) => columns.map((column) => this.text(column, row)).join(" "));
    this.searched = new Map(rows.map((row) => [row, words(row).toLowerCase()]));
    this.place = new Map(rows.map((row, i) => [row, i]));
    const line = document.createElement("tr");
    for (const column of columns) {
      const cell = document.createElement("th");
      cell.textContent = column.label;
      if (column.number) cell.className = "n";
      press(cell, () => { this.order = [column.key, this.order[0] === column.key ? -this.order[1] : 1]; this.show(); });
      line.append(cell);
    }
    table.tHead.replaceChildren(line);
    filter.addEventListener("input", () => this.show());
    this.show();
  }
  text(column, row) {
    const value = column.text ? column.text(row) : row[column.key];
    return value === null || value === undefined ? "" : String(value);
  }
  matching() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean), [key, way] = this.order;
    return this.rows.filter((row) => words.every((word) => this.searched.get(row).includes(word))).sort((a, b) => {
      const x = a[key] ?? null, y = b[key] ?? null, as_they_came = this.place.get(a) - this.place.get(b);
      if (key === null) return as_they_came;
      if (x === null || y === null) return (x === null) - (y === null) || as_they_came; // unknown values stay last
      const order = typeof x === "string" ? x.localeCompare(String(y), undefined, { numeric: true }) : x - y;
      return way * order || as_they_came;
    });
  }
  show() {
    const kept = this.matching(), [key, way] = this.order;
    [...this.table.tHead.rows[0].cells].forEach((cell, i) => cell.setAttribute("aria-sort", this.columns[i].key === key ? (way > 0 ? "ascending" : "descending") : "none"));
    this.table.tBodies[0].replaceChildren(...kept.slice(0, this.limit).map((row) => {
      const line = document.createElement("tr");
      line.dataset.key = this.name(row);
      line.className = this.kind(row);
      if (line.dataset.key === this.chosen) line.classList.add("chosen");
      for (const column of this.columns) {
        const cell = document.createElement("td");
        if (column.fill) column.fill(cell, row); else cell.textContent = this.text(column, row);
        if (column.number) cell.classList.add("n");
        line.append(cell);
      }
      press(line, () => this.choose(row));
      return line;
    }));
    this.count.textContent = `${kept.length} of ${this.rows.length}` + (kept.length > this.limit ? `, the first ${this.limit} shown` : "");
  }
  mark(name) {
    this.chosen = name;
    for (const line of this.table.tBodies[0].rows) line.classList.toggle("chosen", line.dataset.key === name);
  }
}

function press(element, act) {
  element.tabIndex = 0;
  element.addEventListener("click", act);
  element.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(); } });
}
function cellParameters({ cell }) {
  const length = cell.map((v) => Math.hypot(...v)), dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  const angle = (i, j) => Math.acos(Math.max(-1, Math.min(1, dot(cell[i], cell[j]) / length[i] / length[j]))) * 180 / Math.PI;
  return [...length, angle(1, 2), angle(0, 2), angle(0, 1)];
}
function volume({ cell: [a, b, c] }) {
  return Math.abs(a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0]));
}
function cifText(structure, name) {
  const tags = ["length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"], values = cellParameters(structure);
  const sites = ["type_symbol", "label", "fract_x", "fract_y", "fract_z"].map((tag) => "_atom_site_" + tag);
  const lines = ["data_" + name, ...tags.map((tag, i) => `_cell_${tag} ${values[i].toFixed(6)}`), "_space_group_name_H-M_alt 'P 1'",
    "loop_", "_space_group_symop_operation_xyz", "'x,y,z'", "loop_", ...sites];
  structure.symbols.forEach((symbol, i) => lines.push([symbol, symbol + (i + 1), ...structure.frac[i]].join(" ")));
  return lines.join("\n") + "\n";
}
function saveFile(content, name, type) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  savePicture(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
function savePicture(url, name) { element("a", { href: url, download: name }).click(); }
