"use strict";
// What the reports share: a viewer of one crystal, a table of many, and files saved from the page.
// JSON_DATA is the data of the report; a structure is {cell: 3 rows in Å, symbols, frac: [[x, y, z], …]}.
const JSON_DATA = JSON.parse(document.getElementById("data").textContent);
const lowered = (formula) => formula.replace(/\d/g, (digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]);
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
    this.scene.removeAllModels();
    this.scene.removeAllShapes();
    this.scene.render();
  }
  resize() { if (this.scene) this.scene.resize(); }
  // times: cells along each direction; keepView: do not turn or zoom; bonds: draw them
  draw(structure, { keepView = false, bonds = true, times = 1 } = {}) {
    if (!this.scene) return;
    this.scene.removeAllModels();
    this.scene.removeAllShapes();
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
    if (!keepView) {
      this.scene.setView([0, 0, 0, 0, 0, 0, 0, 1]);
      this.scene.rotate(-75, "x");
      this.scene.rotate(20, "y");
      this.scene.zoomTo();
      this.scene.zoom(0.9);
    }
    this.scene.render();
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
function cifText(structure, name) {
  const tags = ["length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"], values = cellParameters(structure);
  const sites = ["type_symbol", "label", "fract_x", "fract_y", "fract_z"].map((tag) => "_atom_site_" + tag);
  const lines = ["data_" + name, ...tags.map((tag, i) => `_cell_${tag} ${values[i].toFixed(6)}`), "_space_group_name_H-M_alt 'P 1'", "loop_", ...sites];
  structure.symbols.forEach((symbol, i) => lines.push([symbol, symbol + (i + 1), ...structure.frac[i]].join(" ")));
  return lines.join("\n") + "\n";
}
function saveFile(content, name, type) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
