"use strict";
const { columns, groups, elements, cells } = JSON_DATA, keys = Object.keys(columns);
const rows = JSON_DATA.rows.map((values) => Object.fromEntries(keys.map((key, i) => [key, values[i]])));
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
const panel = new CrystalPanel(byId("view"), elements);
function choose(row) {
  table.mark(String(row.index));
  byId("view").hidden = false;
  const structure = cells[row.index - 1], title = [row.index, lowered(row.formula), row.name].filter(Boolean).join(" · ");
  panel.show(structure, { title, name: `structure-${row.index}`, facts: structure ? [] : [["remark", row.remark || "the page carries no coordinates of this structure"]] });
}
byId("csv").addEventListener("click", () => {
  const quote = (value) => '"' + String(value ?? "").replaceAll('"', '""') + '"';
  const lines = [Object.values(columns), ...table.matching().map((row) => keys.map((key) => row[key]))];
  saveFile(lines.map((line) => line.map(quote).join(",")).join("\n") + "\n", "structures.csv", "text/csv");
});
