"use strict";
const data = JSON_DATA, byId = (id) => document.getElementById(id);
const state = { chosen: null, times: 1, playing: null, frame: 0, timer: null };
const ev = (value) => (value === null ? "" : (value >= 0 ? "+" : "−") + Math.abs(value).toFixed(3));
const percent = (value) => (value === null ? "" : (value >= 0 ? "+" : "−") + Math.abs(100 * value).toFixed(1) + " %");
const began = (phase) => phase.start && phase.fraction !== null ? `${phase.start} (${Math.round(100 * phase.fraction)} % of prototype weights)` : phase.start;
const noted = (phase) => [phase.novelty, phase.known_id, phase.held_out && `(held-out ${phase.held_out})`].filter(Boolean).join(" ");
const byKey = new Map([...data.known.map((p) => [`known ${p.name}`, p]), ...data.phases.map((p) => [p.name, p])]);
const titleOf = (key, phase) => `${lowered(phase.formula)}: ${ev(phase.e)} eV/atom above hull (${key.startsWith("known ") ? "known, " : ""}${phase.name})`;

// The drawing: every marker is a link to "#" and the key of its phase.
const plot = byId("plot");
for (const link of plot.querySelectorAll("a")) {
  const key = (link.getAttribute("xlink:href") || link.getAttribute("href") || "").slice(1), phase = byKey.get(key);
  if (!phase) continue;
  link.dataset.key = key;
  link.setAttribute("aria-label", titleOf(key, phase));
  link.addEventListener("pointermove", (event) => showTip(event, titleOf(key, phase)));
  link.addEventListener("pointerleave", hideTip);
  link.addEventListener("click", (event) => { event.preventDefault(); showTip(event, titleOf(key, phase)); choose(key); });
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
  const ball = (key, phase, color, radius) => scene.addSphere({
    center: spotOf(phase), radius, color, clickable: true, callback: () => choose(key), hoverable: true,
    hover_callback: (_shape, _viewer, event) => showTip(event, titleOf(key, phase)), unhover_callback: hideTip,
  });
  for (const phase of data.known) if (phase.stable) ball(`known ${phase.name}`, phase, "#1d2329", 0.45);
  for (const phase of data.phases) if (phase.e !== null && phase.e < 0.5) ball(phase.name, phase, phase.e < -1e-5 ? "#c8553d" : colour(phase.e), 0.4);
  scene.zoomTo();
  scene.render();
  addEventListener("resize", () => scene.resize());
}
if (data.elements.length === 4) drawSolid();

// The structure and its denoising.
const viewer = new CrystalViewer(byId("scene"), data.atoms);
function choose(key) {
  stop();
  state.chosen = key;
  state.playing = null;
  const known = key.startsWith("known "), phase = byKey.get(key), structure = data.structures[key];
  byId("name").textContent = `${lowered(phase.formula)} · ${phase.name}`;
  const facts = known ? ["known phase", `${ev(phase.e)} eV/atom above hull`] : [
    phase.e === null ? `${phase.status}: ${phase.reason}` : `${ev(phase.e)} eV/atom above the known hull, ${ev(phase.full)} above the hull with the candidates`,
    phase.group, noted(phase), phase.volume === null ? "" : `volume ${percent(phase.volume)} on relaxation`, phase.found > 1 ? `found ${phase.found} times` : "",
    phase.start && `from ${began(phase)}`, phase.origin === "known" ? "the library's own crystal" : "",
    phase.status === "unconverged" ? "not fully relaxed" : "", phase.file];
  byId("facts").textContent = [...facts, structure ? "" : "no structure in this report"].filter(Boolean).join(" · ");
  byId("play").hidden = !data.trajectories[key];
  byId("frame").hidden = true;
  if (structure) viewer.draw(structure, { times: state.times }); else viewer.clear();
  pressed();
  for (const link of plot.querySelectorAll("a")) link.classList.toggle("chosen", link.dataset.key === key);
  table.mark(key);
}
function pressed() {
  byId("relaxed").setAttribute("aria-pressed", String(state.playing === null));
  byId("play").setAttribute("aria-pressed", String(state.playing !== null));
  byId("play").textContent = state.timer ? "❚❚ denoising" : "▶ denoising";
}
function stop() { clearInterval(state.timer); state.timer = null; pressed(); }
function show(frame, keepView = true) {
  const frames = data.trajectories[state.playing];
  state.frame = frame;
  byId("frame").value = frame;
  viewer.draw(frames[frame], { keepView, bonds: frame > frames.length * 0.6, times: state.times });
}
function play() {
  if (state.timer) return stop();
  const frames = data.trajectories[state.chosen], fresh = state.playing !== state.chosen;
  byId("frame").hidden = false;
  byId("frame").max = frames.length - 1;
  state.playing = state.chosen;
  if (fresh) show(frames.length - 1, false);
  let frame = fresh || state.frame >= frames.length - 1 ? 0 : state.frame;
  state.timer = setInterval(() => { show(frame); if (frame >= frames.length - 1) stop(); frame += 1; }, 110);
  pressed();
}
byId("play").addEventListener("click", play);
byId("frame").addEventListener("input", () => { stop(); show(Number(byId("frame").value)); });
byId("relaxed").addEventListener("click", () => choose(state.chosen));
byId("super").addEventListener("click", () => {
  state.times = 3 - state.times;
  byId("super").setAttribute("aria-pressed", String(state.times === 2));
  if (state.playing) show(state.frame, false); else choose(state.chosen);
});
const named = Object.keys(data.trajectories), list = byId("trajectories");
if (named.length) {
  list.hidden = false;
  list.append(new Option("denoising of …", ""), ...named.map((name) => new Option(name, name)));
  list.addEventListener("change", () => { if (list.value) { choose(list.value); play(); } list.value = ""; });
}

// The table.
data.phases.forEach((phase, i) => (phase.rank = i + 1));
const table = new StructureTable({
  table: byId("table"), filter: byId("filter"), count: byId("count"), rows: data.phases,
  columns: [
    { key: "rank", label: "#", number: true }, { key: "formula", label: "formula", text: (p) => lowered(p.formula) },
    { key: "e", label: "E above hull / eV", number: true, text: (p) => ev(p.e) }, { key: "group", label: "space group" },
    { key: "form", label: "formation / eV", number: true, text: (p) => ev(p.form) }, { key: "volume", label: "volume", number: true, text: (p) => percent(p.volume) },
    { key: "novelty", label: "novelty", text: noted }, { key: "found", label: "found", number: true },
    ...(data.phases.some((p) => p.start) ? [{ key: "start", label: "start", text: began }] : []),
    { key: "atoms", label: "atoms", number: true }, { key: "status", label: "status" }, { key: "name", label: "name" }, { key: "file", label: "file" }],
  name: (phase) => phase.name, choose: (phase) => choose(phase.name), kind: (phase) => (phase.e === null ? "failed" : ""),
  searched: (p) => [p.formula, p.group, noted(p), p.start, p.status, p.name].join(" "),
});

for (const [name, value] of Object.entries(data.counts)) {
  if (value === 0 && (name === "waiting" || name.startsWith("held-out") && !data.counts["held-out phases"])) continue;
  const item = document.createElement("span"), strong = document.createElement("b");
  strong.textContent = value;
  item.append(strong, ` ${name}`);
  byId("figures").append(item);
}
byId("settings").textContent = JSON.stringify({ versions: data.versions, settings: data.settings }, null, 2);
addEventListener("resize", () => viewer.resize());
const first = data.phases.find((p) => data.structures[p.name]);
if (first) choose(first.name);
else if (data.known.length) choose(`known ${data.known[0].name}`);
