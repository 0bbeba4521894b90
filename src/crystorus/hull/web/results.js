"use strict";
const data = JSON_DATA;
const state = { chosen: null, playing: null, frame: 0, timer: null };
const forms = {
  formula: lowered, number: (value) => value, text: (value) => value, ev: (value) => signed(value), percent: (value) => signed(100 * value, 1, " %"),
  group: (value) => value.replace(/_(\d)/g, (_, digit) => lowered(digit)), // screw axes
  decimal: (value) => value.toFixed(3), angle: (value) => value.toFixed(1), fraction: (value) => Math.round(100 * value) + " %",
};
const textOf = ([key, , form], row) => ((row[key] ?? "") === "" ? "" : String(forms[form](row[key])));
const IN_PANEL = new Set(["index", "rank", "formula", "name", "n_atoms", "a", "b", "c", "alpha", "beta", "gamma", "volume_per_atom"]);
const keyOf = (row) => row.key || row.name;
const byKey = new Map([...data.known, ...data.rows].map((row) => [keyOf(row), row]));
const titleOf = (row) => `${lowered(row.formula)}: ${signed(row.e_above_hull)} eV/atom above hull (${row.key ? "known, " : ""}${row.name})`;

// The drawing: every marker is a link to "#" and the key of its phase.
const plot = byId("plot");
for (const link of plot.querySelectorAll("a")) {
  const key = (link.getAttribute("xlink:href") || link.getAttribute("href") || "").slice(1), phase = byKey.get(key);
  if (!phase) continue;
  link.dataset.key = key;
  link.setAttribute("aria-label", titleOf(phase));
  link.addEventListener("pointermove", (event) => showTip(event, titleOf(phase)));
  link.addEventListener("pointerleave", hideTip);
  link.addEventListener("click", (event) => { event.preventDefault(); showTip(event, titleOf(phase)); choose(key); });
}
function showTip(event, text) {
  const tip = byId("tip");
  tip.textContent = text;
  tip.style.display = "block";
  tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 4)) + "px";
  tip.style.top = Math.max(4, event.clientY - tip.offsetHeight - 10) + "px";
}
function hideTip() { byId("tip").style.display = "none"; }

// Four elements: the same hull as a solid that turns.
const corners = [[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]].map((corner) => corner.map((x) => 10 * x));
const spotOf = (phase) => {
  const [x, y, z] = [0, 1, 2].map((k) => data.elements.reduce((sum, symbol, i) => sum + (phase.parts[symbol] || 0) * corners[i][k], 0));
  return { x, y, z };
};
// viridis_r of matplotlib, up to 0.2 eV/atom: FULL_COLOUR of report.py, which draws the other picture.
const stops = [[253, 231, 37], [94, 201, 98], [33, 145, 140], [59, 82, 139], [68, 1, 84]];
function colour(height) {
  const x = Math.min(Math.max(height, 0) / 0.2, 0.9999) * (stops.length - 1), i = Math.floor(x);
  return `rgb(${stops[i].map((a, k) => Math.round(a + (x - i) * (stops[i + 1][k] - a))).join(",")})`;
}
function drawSolid() {
  const place = byId("solid");
  place.hidden = false;
  let scene;
  try { scene = $3Dmol.createViewer(place, { backgroundColor: "white", antialias: true }); } catch (error) { place.hidden = true; return; }
  byId("turnhint").hidden = false;
  const line = (a, b, color, radius) => scene.addCylinder({ start: a, end: b, radius, color });
  const ends = data.elements.map((symbol) => spotOf({ parts: { [symbol]: 1 } }));
  ends.forEach((a, i) => {
    scene.addLabel(data.elements[i], { position: a, fontColor: "#1d2329", backgroundOpacity: 0, fontSize: 16 });
    ends.slice(0, i).forEach((b) => line(a, b, "#c3c8cd", 0.05));
  });
  for (const [a, b] of data.lines) line(spotOf(data.known[a]), spotOf(data.known[b]), "#6b7280", 0.04);
  const ball = (phase, color, radius) => scene.addSphere({
    center: spotOf(phase), radius, color, clickable: true, callback: () => choose(keyOf(phase)), hoverable: true,
    hover_callback: (_shape, _viewer, event) => showTip(event, titleOf(phase)), unhover_callback: hideTip,
  });
  for (const phase of data.known) if (phase.stable) ball(phase, "#1d2329", 0.45);
  for (const { e_above_hull: height, ...phase } of data.rows) if (height !== null && height < 0.5) ball({ ...phase, e_above_hull: height }, height < -5e-4 ? "#c8553d" : colour(height), 0.4);
  scene.zoomTo();
  scene.render();
  addEventListener("resize", () => scene.resize());
}
if (data.elements.length === 4) drawSolid();

// The structure and its denoising.
const panel = new CrystalPanel(byId("panel"), data.atoms);
const [relaxed, film] = ["final", "▶ denoising"].map((textContent) => element("button", { textContent }));
const slider = element("input", { type: "range", min: 0, value: 0, ariaLabel: "step" });
const list = element("select", { ariaLabel: "crystal whose denoising is shown" });
panel.controls.after(element("div", { className: "controls" }, relaxed, film, slider, list));
function choose(key) {
  stop();
  state.chosen = key;
  state.playing = null;
  const row = byKey.get(key), structure = data.structures[key] || null;
  const facts = data.columns.filter((column) => !IN_PANEL.has(column[0])).map((column) => [column[1], textOf(column, row)]).filter(([, text]) => text !== "");
  if (!structure) facts.push(["structure", "not in this page"]);
  panel.show(structure, { title: [lowered(row.formula), row.name, row.key && "known phase"].filter(Boolean).join(" · "), name: row.name, facts });
  film.hidden = relaxed.hidden = !data.trajectories[key];
  slider.hidden = true;
  pressed();
  for (const link of plot.querySelectorAll("a")) link.classList.toggle("chosen", link.dataset.key === key);
  table.mark(key);
}
function pressed() {
  relaxed.setAttribute("aria-pressed", String(state.playing === null));
  film.setAttribute("aria-pressed", String(state.playing !== null));
  film.textContent = state.timer ? "❚❚ denoising" : "▶ denoising";
}
function stop() { clearInterval(state.timer); state.timer = null; pressed(); }
function show(frame, keepView = true) {
  const frames = data.trajectories[state.playing];
  state.frame = frame;
  slider.value = frame;
  panel.show(frames[frame], { keepView, bonds: frame > frames.length * 0.6 });
}
function play() {
  if (state.timer) return stop();
  const frames = data.trajectories[state.chosen], fresh = state.playing !== state.chosen;
  slider.hidden = false;
  slider.max = frames.length - 1;
  state.playing = state.chosen;
  if (fresh) show(frames.length - 1, false);
  let frame = fresh || state.frame >= frames.length - 1 ? 0 : state.frame;
  state.timer = setInterval(() => { show(frame); if (frame >= frames.length - 1) stop(); frame += 1; }, 110);
  pressed();
}
film.addEventListener("click", play);
slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
relaxed.addEventListener("click", () => choose(state.chosen));
const named = Object.keys(data.trajectories);
list.hidden = !named.length;
list.append(new Option("denoising of …", ""), ...named.map((name) => new Option(name, name)));
list.addEventListener("change", () => { if (list.value) { choose(list.value); play(); } list.value = ""; });

// The table.
const table = new StructureTable({
  table: byId("table"), filter: byId("filter"), count: byId("count"), rows: data.rows,
  columns: data.columns.map(([key, label, form]) => ({
    key, label, number: !["text", "formula", "group"].includes(form), text: (row) => textOf([key, label, form], row),
  })),
  name: keyOf, choose: (row) => choose(keyOf(row)), kind: (row) => (row.failed ? "failed" : ""),
});
for (const [name, value] of Object.entries(data.counts)) {
  byId("figures").append(element("span", {}, element("b", { textContent: value }), ` ${name}`));
}
byId("settings").textContent = JSON.stringify({ versions: data.versions, settings: data.settings }, null, 2);
const first = [...data.rows, ...data.known].find((row) => data.structures[keyOf(row)]);
if (first) choose(keyOf(first));
