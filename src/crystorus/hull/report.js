"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const size = data.elements.length;
const state = { chosen: null, sort: ["e", 1], super: false, film: null, frame: 0, timer: null, turn: [0.5, -0.25] };

// ---------------------------------------------------------------- words and colours
const ev = (value) => (value === null ? "" : (value >= 0 ? "+" : "−") + Math.abs(value).toFixed(3));
const percent = (value) => (value === null ? "" : (value >= 0 ? "+" : "−") + Math.abs(100 * value).toFixed(1) + " %");
const stops = [[253, 231, 37], [94, 201, 98], [33, 145, 140], [59, 82, 139], [68, 1, 84]];
function colour(height) {
  const x = Math.min(Math.max(height, 0) / 0.2, 0.9999) * (stops.length - 1), i = Math.floor(x);
  return `rgb(${stops[i].map((a, k) => Math.round(a + (x - i) * (stops[i + 1][k] - a))).join(",")})`;
}
byId("ramp").style.background = `linear-gradient(90deg, ${stops.map((c) => `rgb(${c})`).join(",")})`;
function element(name, attributes = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  made.textContent = String(text);
  return made;
}
const lowered = (formula) => formula.replace(/\d/g, (digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]);
const narrow = () => innerWidth <= 820;
const began = (phase) => phase.start && phase.votes !== null ? `${phase.start} (${Math.round(100 * phase.votes)} % of votes)` : phase.start;
const noted = (phase) => [phase.novelty, phase.known_id, phase.held_out && `(held-out ${phase.held_out})`].filter(Boolean).join(" ");

// ---------------------------------------------------------------- the hull
const plot = byId("plot"), WIDE = 560, HIGH = size === 2 ? 430 : 500;
plot.setAttribute("viewBox", `0 0 ${WIDE} ${HIGH}`);
const fractions = (parts) => data.elements.map((symbol) => parts[symbol] || 0);
const corners4 = [[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]];
let spotOf;
if (size === 2) {
  const all = [...data.known, ...data.phases].map((p) => p.form).filter((y) => y !== null && y < 0.5);
  const bottom = Math.min(0, ...all), top = Math.max(0, bottom + 0.05, ...all);
  const low = bottom - 0.12 * (top - bottom), high = top + 0.08 * (top - bottom);
  const x = (value) => 92 + value * (WIDE - 122), y = (value) => 20 + (high - value) / (high - low) * (HIGH - 75);
  spotOf = (phase) => [x(fractions(phase.parts)[1]), y(phase.form)];
  state.axes = { x, y, low, high };
} else if (size === 3) {
  const corners = [[40, HIGH - 50], [WIDE - 40, HIGH - 50], [WIDE / 2, HIGH - 50 - (WIDE - 80) * Math.sqrt(3) / 2]];
  state.corners = corners;
  spotOf = (phase) => [0, 1].map((k) => fractions(phase.parts).reduce((sum, f, i) => sum + f * corners[i][k], 0));
} else if (size === 4) {
  spotOf = (phase) => turned([0, 1, 2].map((k) => fractions(phase.parts).reduce((sum, f, i) => sum + f * corners4[i][k], 0)));
} else {
  const heights = data.phases.filter((p) => p.e !== null), top = Math.max(0.05, ...heights.map((p) => p.e));
  const low = Math.min(0, ...heights.map((p) => p.e));
  spotOf = (phase) => [60 + (WIDE - 90) * (data.phases.indexOf(phase) + 1) / (heights.length + 1),
    30 + (top - phase.e) / (top - low || 1) * (HIGH - 80)];
}
function turned([x, y, z]) {
  const [a, b] = state.turn, u = Math.cos(a) * x + Math.sin(a) * z, w = -Math.sin(a) * x + Math.cos(a) * z;
  return [WIDE / 2 + 150 * u, HIGH / 2 - 150 * (Math.cos(b) * y - Math.sin(b) * w)];
}
function drawFrame() {
  const line = (a, b, attributes) => plot.append(element("line", { x1: a[0], y1: a[1], x2: b[0], y2: b[1], ...attributes }));
  if (size === 2) {
    const { x, y, low, high } = state.axes;
    for (const value of [0, 0.25, 0.5, 0.75, 1])
      plot.append(element("text", { x: x(value), y: HIGH - 32, "text-anchor": "middle" }, value));
    const step = [0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2].find((s) => (high - low) / s < 8) || 2;
    for (let value = Math.ceil(low / step) * step; value <= high; value += step) {
      line([x(0), y(value)], [x(1), y(value)], { stroke: "#e6e9ec" });
      plot.append(element("text", { x: x(0) - 11, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(2)));
    }
    plot.append(element("text", { x: x(0.5), y: HIGH - 8, "text-anchor": "middle" }, `fraction of ${data.elements[1]}`));
    plot.append(element("text", { transform: `translate(20 ${HIGH / 2}) rotate(-90)`, "text-anchor": "middle" }, "formation energy / eV per atom"));
  } else if (size <= 4) {
    const corners = data.elements.map((symbol) => spotOf({ parts: { [symbol]: 1 } }));
    corners.forEach((a, i) => corners.slice(0, i).forEach((b) => line(a, b, { stroke: "#c3c8cd" })));
    const middle = [0, 1].map((k) => corners.reduce((sum, c) => sum + c[k], 0) / size);
    corners.forEach((c, i) => plot.append(element("text", { x: c[0] + Math.sign(c[0] - middle[0]) * 14, y: c[1] + (c[1] > middle[1] ? 24 : -12),
      "text-anchor": "middle", "font-weight": "bold" }, data.elements[i])));
  } else {
    line([60, spotOf({ e: 0 })[1]], [WIDE - 30, spotOf({ e: 0 })[1]], { stroke: "#555" });
    plot.append(element("text", { x: 60, y: HIGH - 10 }, "candidates by rank; height: energy above hull"));
  }
  if (size <= 4) for (const [a, b] of data.lines) line(spotOf(data.known[a]), spotOf(data.known[b]), { stroke: "#6b7280", "stroke-width": 1.2 });
}
function drawPlot() {
  plot.replaceChildren();
  drawFrame();
  const placed = [];
  if (size <= 4) for (const phase of [...data.known].sort((a, b) => b.e - a.e)) {
    const [x, y] = spotOf(phase), side = (phase.stable ? 10 : 7) * (narrow() ? 1.5 : 1);
    const spot = element("rect", { x: x - side / 2, y: y - side / 2, width: side, height: side, class: "spot",
      fill: phase.stable ? "#1d2329" : "none", stroke: "#1d2329", "fill-opacity": 1, "pointer-events": "all" });
    if (size === 2 && phase.form > 0.5) continue;
    hover(spot, phase, `known ${phase.name}`, true);
    if (phase.stable && !(size > 2 && Object.keys(phase.parts).length === 1)) placed.push([x, y, lowered(phase.formula)]);
  }
  for (const phase of [...data.phases].reverse()) {
    if (phase.e === null || (size === 2 && phase.form > 0.5) || (size > 2 && size <= 4 && phase.e > 0.5)) continue;
    const [x, y] = spotOf(phase);
    hover(element("circle", { cx: x, cy: y, r: narrow() ? 9.5 : 6.5, class: "spot", fill: colour(phase.e),
      stroke: phase.e < -1e-5 ? "#c8553d" : "#4b5563", "stroke-width": phase.e < -1e-5 ? 2 : 0.8 }), phase, phase.name, false);
  }
  for (const [x, y, formula] of placed)
    plot.append(element("text", { x: x > WIDE - 60 ? x - 8 : x + 8, y: y - 9, "text-anchor": x > WIDE - 60 ? "end" : "start", "pointer-events": "none", stroke: "#fff", "stroke-width": 3, "paint-order": "stroke" }, formula));
}
function hover(spot, phase, key, known) {
  spot.dataset.key = key;
  if (key === state.chosen) spot.classList.add("chosen");
  const title = `${lowered(phase.formula)}: ${ev(phase.e)} eV/atom above hull` + (known ? ` (known, ${phase.name})` : ` (${phase.name})`);
  spot.setAttribute("aria-label", title);
  spot.addEventListener("pointermove", (event) => tell(event, title));
  spot.addEventListener("pointerleave", () => (byId("tip").style.display = "none"));
  spot.addEventListener("click", (event) => { tell(event, title); choose(key); });
  plot.append(spot);
}
function tell(event, text) {
  const tip = byId("tip");
  tip.textContent = text;
  tip.style.display = "block";
  tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 4)) + "px";
  tip.style.top = Math.max(4, event.clientY - tip.offsetHeight - 10) + "px";
}
if (size === 4) {
  plot.classList.add("turns");
  byId("turnhint").textContent = " · drag to turn";
  let from = null;
  plot.addEventListener("pointerdown", (event) => { from = [event.clientX, event.clientY]; });
  addEventListener("pointerup", () => (from = null));
  addEventListener("pointermove", (event) => {
    if (!from) return;
    state.turn = [state.turn[0] + (event.clientX - from[0]) / 120, state.turn[1] + (event.clientY - from[1]) / 120];
    from = [event.clientX, event.clientY];
    drawPlot();
  });
}

// ---------------------------------------------------------------- the structure
let viewer = null;
try {
  viewer = $3Dmol.createViewer(byId("scene"), { backgroundColor: "white", antialias: true });
} catch (error) {
  byId("scene").textContent = "This browser has no WebGL: structures cannot be drawn.";
}
const cartesian = (cell, frac) => [0, 1, 2].map((k) => frac[0] * cell[0][k] + frac[1] * cell[1][k] + frac[2] * cell[2][k]);
const point = ([x, y, z]) => ({ x, y, z });
function atomsToDraw({ symbols, frac }, times) {
  // Atoms on a face are drawn on the opposite one too.
  const shifts = (x) => { const all = []; for (let n = 0; n <= times; n++) if (x + n <= times + 0.02) all.push(x + n); if (x > 0.98) all.unshift(x - 1); return all; };
  const drawn = [];
  symbols.forEach((symbol, i) => {
    for (const a of shifts(frac[i][0])) for (const b of shifts(frac[i][1])) for (const c of shifts(frac[i][2])) drawn.push([symbol, [a, b, c]]);
  });
  return drawn;
}
function drawStructure(structure, { keepView = false, bonds = true } = {}) {
  if (!viewer) return;
  const times = state.super ? 2 : 1;
  viewer.removeAllModels();
  viewer.removeAllShapes();
  const atoms = atomsToDraw(structure, times).map(([symbol, frac], i) => ({ elem: symbol, ...point(cartesian(structure.cell, frac)), serial: i, index: i, bonds: [], bondOrder: [] }));
  if (bonds && atoms.length < 900) atoms.forEach((a, i) => atoms.slice(0, i).forEach((b, j) => {
    const reach = 1.15 * (data.radii[a.elem] + data.radii[b.elem]), d = Math.hypot(a.x - b.x, a.y - b.y, a.z - b.z);
    if (d < reach && d > 0.4 && !(metal(a.elem) && metal(b.elem))) { a.bonds.push(j); a.bondOrder.push(1); b.bonds.push(i); b.bondOrder.push(1); }
  }));
  const model = viewer.addModel();
  model.addAtoms(atoms);
  viewer.setStyle({}, { sphere: { scale: 0.28, colorscheme: "Jmol" }, stick: { radius: 0.1, colorscheme: "Jmol" } });
  for (let k = 0; k < 3; k++) for (const p of [0, times]) for (const q of [0, times]) {
    const from = [0, 0, 0], to = [0, 0, 0];
    from[(k + 1) % 3] = to[(k + 1) % 3] = p;
    from[(k + 2) % 3] = to[(k + 2) % 3] = q;
    to[k] = times;
    viewer.addCylinder({ start: point(cartesian(structure.cell, from)), end: point(cartesian(structure.cell, to)), radius: 0.035, color: "#444" });
  }
  if (!keepView) { viewer.setView([0, 0, 0, 0, 0, 0, 0, 1]); viewer.rotate(-75, "x"); viewer.rotate(20, "y"); viewer.zoomTo(); viewer.zoom(0.9); }
  viewer.render();
}
const LIGHT = new Set(["H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Se", "Br", "I", "As", "Te", "Ge"]);
const metal = (symbol) => !LIGHT.has(symbol);
function choose(key) {
  stop();
  state.chosen = key;
  state.film = null;
  const known = key.startsWith("known "), phase = known ? data.known.find((p) => `known ${p.name}` === key) : data.phases.find((p) => p.name === key);
  byId("name").textContent = `${lowered(phase.formula)} · ${phase.name}`;
  const facts = known ? [`known phase`, `${ev(phase.e)} eV/atom above hull`] : [
    phase.e === null ? `${phase.status}: ${phase.reason}` : `${ev(phase.e)} eV/atom above the known hull, ${ev(phase.full)} above the hull with the candidates`,
    phase.group, noted(phase), phase.volume === null ? "" : `volume ${percent(phase.volume)} on relaxation`, phase.found > 1 ? `found ${phase.found} times` : "",
    phase.start && `from ${began(phase)}`, phase.origin === "known" ? "the library's own crystal" : "",
    phase.status === "unconverged" ? "not fully relaxed" : "", phase.file];
  byId("facts").textContent = facts.filter(Boolean).join(" · ");
  const structure = data.structures[key];
  byId("play").hidden = !data.films[key];
  byId("frame").hidden = true;
  if (structure) drawStructure(structure);
  else if (viewer) { viewer.removeAllModels(); viewer.removeAllShapes(); viewer.render(); byId("facts").textContent += " · no structure in this report"; }
  press();
  document.querySelectorAll(".chosen").forEach((one) => one.classList.remove("chosen"));
  document.querySelectorAll("[data-key]").forEach((one) => one.dataset.key === key && one.classList.add("chosen"));
}

// ---------------------------------------------------------------- the film
function press() {
  byId("relaxed").setAttribute("aria-pressed", String(state.film === null));
  byId("play").setAttribute("aria-pressed", String(state.film !== null));
  byId("play").textContent = state.timer ? "❚❚ denoising" : "▶ denoising";
}
function stop() { clearInterval(state.timer); state.timer = null; press(); }
function show(frame, keepView = true) {
  const film = data.films[state.film];
  state.frame = frame;
  byId("frame").value = frame;
  drawStructure(film[frame], { keepView, bonds: frame > film.length * 0.6 });
}
function play() {
  if (state.timer) return stop();
  const film = data.films[state.chosen];
  byId("frame").hidden = false;
  byId("frame").max = film.length - 1;
  const fresh = state.film !== state.chosen;
  state.film = state.chosen;
  if (fresh) show(film.length - 1, false);
  let frame = fresh || state.frame >= film.length - 1 ? 0 : state.frame;
  state.timer = setInterval(() => { show(frame); if (frame >= film.length - 1) stop(); frame += 1; }, 110);
  press();
}
byId("play").addEventListener("click", play);
byId("frame").addEventListener("input", () => { stop(); show(Number(byId("frame").value)); });
byId("relaxed").addEventListener("click", () => choose(state.chosen));
byId("super").addEventListener("click", () => {
  state.super = !state.super;
  byId("super").setAttribute("aria-pressed", String(state.super));
  if (state.film) show(state.frame, false); else choose(state.chosen);
});
const films = Object.keys(data.films);
if (films.length) {
  byId("films").hidden = false;
  byId("films").append(new Option("denoising of …", ""), ...films.map((name) => new Option(name, name)));
  byId("films").addEventListener("change", () => { if (byId("films").value) { choose(byId("films").value); play(); } byId("films").value = ""; });
}

// ---------------------------------------------------------------- the table
const columns = [["rank", "#", (p, i) => i, 1], ["formula", "formula", (p) => lowered(p.formula)], ["e", "E above hull / eV", (p) => ev(p.e), 1], ["group", "space group"],
  ["form", "formation / eV", (p) => ev(p.form), 1], ["volume", "volume", (p) => percent(p.volume), 1], ["novelty", "novelty", noted], ["found", "found", (p) => p.found, 1],
  ...(data.phases.some((p) => p.start) ? [["start", "start", began]] : []),
  ["atoms", "atoms", (p) => p.atoms, 1], ["status", "status"], ["name", "name"], ["file", "file"]];
data.phases.forEach((phase, i) => (phase.rank = i + 1));
const head = document.createElement("tr");
for (const [key, label, , number] of columns) {
  const cell = document.createElement("th");
  cell.textContent = label;
  cell.tabIndex = 0;
  if (number) cell.className = "n";
  const sort = () => { state.sort = [key, state.sort[0] === key ? -state.sort[1] : 1]; fill(); };
  cell.addEventListener("click", sort);
  cell.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  head.append(cell);
}
byId("table").tHead.append(head);
function fill() {
  const [key, way] = state.sort, words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = data.phases.filter((p) => { const text = [p.formula, p.group, noted(p), p.start, p.status, p.name].join(" ").toLowerCase(); return words.every((w) => text.includes(w)); });
  rows.sort((a, b) => {
    if (a[key] === null || b[key] === null) return (a[key] === null) - (b[key] === null);
    return way * (typeof a[key] === "number" ? a[key] - b[key] : String(a[key]).localeCompare(String(b[key]), undefined, { numeric: true }));
  });
  [...head.children].forEach((cell, i) => columns[i][0] === key ? cell.setAttribute("aria-sort", way > 0 ? "ascending" : "descending") : cell.removeAttribute("aria-sort"));
  byId("table").tBodies[0].replaceChildren(...rows.map((phase) => {
    const row = document.createElement("tr");
    row.dataset.key = phase.name;
    if (phase.e === null) row.className = "failed";
    if (phase.name === state.chosen) row.classList.add("chosen");
    for (const [name, , say, number] of columns) {
      const cell = document.createElement("td");
      cell.textContent = say ? say(phase, phase.rank) : phase[name];
      if (number) cell.className = "n";
      row.append(cell);
    }
    row.addEventListener("click", () => choose(phase.name));
    return row;
  }));
  byId("count").textContent = `${rows.length} of ${data.phases.length}`;
}
byId("filter").addEventListener("input", fill);

// ---------------------------------------------------------------- the rest
for (const [name, value] of Object.entries(data.counts)) {
  if (value === 0 && (name === "waiting" || name.startsWith("held-out") && !data.counts["held-out phases"])) continue;
  const item = document.createElement("span"), strong = document.createElement("b");
  strong.textContent = value;
  item.append(strong, ` ${name}`);
  byId("figures").append(item);
}
byId("settings").textContent = JSON.stringify({ versions: data.versions, settings: data.settings }, null, 2);
addEventListener("resize", () => { drawPlot(); if (viewer) viewer.resize(); });
drawPlot();
fill();
const first = data.phases.find((p) => data.structures[p.name]);
if (first) choose(first.name);
else if (data.known.length) choose(`known ${data.known[0].name}`);
