"use strict";
const { columns, groups, elements, cells } = JSON_DATA, keys = Object.keys(columns);
const rows = JSON_DATA.rows.map((values) => Object.fromEntries(keys.map((key, i) => [key, values[i]])));
const byId = (id) => document.getElementById(id);
const shown = (key) => (row) => {
  const value = row[key];
  if (key === "space_group" && groups[value]) return `${value} ${groups[value]}`;
  return value === true ? "yes" : value === false ? "no" : value;
};
const used = keys.filter((key) => rows.some((row) => row[key] !== null && row[key] !== ""));
const table = new StructureTable({
  table: byId("structures"), filter: byId("filter"), count: byId("count"), rows,
  columns: used.map((key) => ({
    key, label: columns[key], text: shown(key),
    number: key !== "space_group" && rows.some((row) => typeof row[key] === "number"),
    fill: (cell, row) => {
      const text = String(shown(key)(row) ?? "");
      cell.textContent = key === "formula" ? lowered(text) : text;
      if (key === "valid" && row.valid === false) cell.className = "bad";
    },
  })),
  name: (row) => String(row.index), choose,
});
let viewer = null, chosen = null;
function choose(row) {
  chosen = row;
  table.mark(String(row.index));
  byId("view").hidden = false;
  const structure = cells[row.index - 1], legend = byId("legend");
  byId("name").textContent = [row.index, lowered(row.formula), row.name].filter(Boolean).join(" · ");
  byId("scene").hidden = byId("cif").hidden = !structure;
  legend.replaceChildren();
  if (!structure) { byId("facts").textContent = row.remark || "The page carries no coordinates of this structure."; return; }
  const p = cellParameters(structure), fixed = (values, digits) => values.map((v) => v.toFixed(digits)).join("  ");
  byId("facts").textContent = `a b c ${fixed(p.slice(0, 3), 3)} Å,  α β γ ${fixed(p.slice(3), 1)}°`;
  for (const symbol of new Set(structure.symbols)) legend.append(Object.assign(document.createElement("span"), { textContent: "● ", style: "color:" + elements[symbol][1] }), symbol + "  ");
  viewer = viewer || new CrystalViewer(byId("scene"), elements);
  viewer.draw(structure);
}
byId("csv").addEventListener("click", () => {
  const quote = (value) => '"' + String(value ?? "").replaceAll('"', '""') + '"';
  const lines = [Object.values(columns), ...table.matching().map((row) => keys.map((key) => row[key]))];
  saveFile(lines.map((line) => line.map(quote).join(",")).join("\n") + "\n", "structures.csv", "text/csv");
});
byId("cif").addEventListener("click", () => saveFile(cifText(cells[chosen.index - 1], `structure_${chosen.index}`), `structure-${chosen.index}.cif`, "chemical/x-cif"));
addEventListener("resize", () => viewer && viewer.resize());
