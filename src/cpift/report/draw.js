// Draws the figures of the page with Observable Plot. Each figure's data is JSON in the page; `kind` says how.
"use strict";
(() => {
const figures = JSON.parse(document.getElementById("figures").textContent);
// Okabe and Ito's colours without yellow and black, which fail on white or on dark; and a symbol beside each.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#888888"];
const SYMBOLS = ["circle", "square", "triangle", "diamond", "cross", "star", "wye"];
const colour = (i) => COLOURS[i % COLOURS.length], symbol = (i) => SYMBOLS[i % SYMBOLS.length];
// Names often differ at their end only, so both ends are kept.
const short = (text, most = 22) => { const t = String(text), end = most > 15 ? 5 : 2; return t.length > most ? t.slice(0, most - 1 - end) + "…" + t.slice(-end) : t; };
const shown = (value, spec) => {
  if (value == null) return "–";
  if (spec.percent) return (100 * value).toFixed(spec.digits ?? 1) + " %";
  return Math.abs(value) >= 1000 ? d3.format(",.0f")(value) : d3.format("." + (spec.digits ?? 3) + "~f")(value);
};
const ticks = (spec) => spec.percent ? (v) => d3.format(".3~f")(100 * v) : spec.ticks === "si" ? (v) => d3.format(v < 1 ? "~g" : "~s")(v) : undefined;
// Room for labels on the left, and how many letters fit there.
const leftOf = (labels, width) => { const most = Math.min(26, Math.floor((width * 0.4 - 14) / 6.4)); return [14 + 6.4 * Math.max(0, ...labels.map((l) => short(l, most).length)), most]; };

function lines(panel, spec, width) {
  const ordinal = spec.xs != null, turned = ordinal && spec.xs.join("").length * 7.5 + spec.xs.length * 12 > width - 60;
  const every = ordinal ? Math.max(1, Math.ceil((14 * spec.xs.length) / (width - 60))) : 1; // labels that would lie on one another are left out
  const marks = [];
  if (spec.zero) marks.push(Plot.ruleY([0], { strokeOpacity: 0.4 }));
  if (panel.reference != null) marks.push(Plot.ruleY([panel.reference], { strokeDasharray: "4,3", strokeOpacity: 0.7 }));
  const z = (r) => spec.series.indexOf(r.s);
  const base = { x: "x", y: "y", z: "s", stroke: (r) => colour(z(r)) };
  const band = panel.rows.filter((r) => r.lo != null);
  if (band.length) marks.push(Plot.ruleX(band, { x: "x", y1: "lo", y2: "hi", stroke: (r) => colour(z(r)), strokeOpacity: 0.35, strokeWidth: 2 }));
  // Lines that may lie on one another are drawn thinner and thinner, so that each is seen.
  marks.push(Plot.lineY(panel.rows, { ...base, strokeWidth: (r) => spec.nested ? 2 + 2.5 * Math.max(0, Math.min(6, spec.series.length - 1) - z(r)) : 2 }));
  if (panel.rows.length <= 180) marks.push(Plot.dot(panel.rows, { ...base, fill: (r) => colour(z(r)), r: spec.nested ? 1 : 3, symbol: (r) => symbol(z(r)),
    title: (r) => `${r.s}\n${spec.xLabel ? spec.xLabel + " " : ""}${r.x}: ${shown(r.y, spec)}`, tip: true }));
  return Plot.plot({
    width, height: spec.small ? 190 : Math.min(360, Math.max(240, width * 0.5)), marginLeft: 48, marginBottom: turned ? 76 : 38, marginRight: 16, marginTop: 24,
    x: ordinal ? { type: "point", domain: spec.xs, ticks: spec.xs.filter((_, i) => i % every === 0), label: null, tickRotate: turned ? -40 : 0, tickFormat: (d) => short(d, 14) } : { label: spec.xLabel, ticks: d3.ticks(...d3.extent(panel.rows, (r) => r.x), Math.max(2, width / 90)).filter(Number.isInteger), tickFormat: "d" },
    y: { label: spec.yLabel, grid: true, tickFormat: ticks(spec), ticks: spec.small ? 4 : 6, zero: !spec.free, domain: spec.yDomain, nice: true },
    symbol: { type: "identity" }, color: { type: "identity" }, marks,
  });
}

function heat(panel, spec, width) {
  const [left, most] = leftOf(spec.ys, width), cell = Math.min(120, (width - left - 8) / spec.xs.length);
  width = Math.max(left + 60, Math.floor(left + 8 + cell * spec.xs.length)); // a few cells need not fill the page
  const numbers = spec.xs.every((x) => x.length < 4);
  const turned = !numbers && Math.max(...spec.xs.map((x) => short(x, 24).length)) * 6.5 > cell, every = Math.max(1, Math.ceil((numbers ? 24 : 14) / cell));
  const paint = d3.scaleDiverging(spec.domain, (t) => d3.interpolatePuOr(0.92 - 0.84 * t));
  const flat = d3.scaleSequential(spec.domain, d3.interpolateCividis);
  const of = (v) => v == null ? "transparent" : spec.diverging ? paint(v) : flat(Math.min(v, spec.domain[1]));
  const dark = (v) => v != null && d3.lab(of(v)).l < 60;
  const marks = [Plot.cell(panel.rows, { x: "x", y: "y", fill: (r) => of(r.v), stroke: (r) => r.mark ? "var(--frame)" : "var(--line)", strokeWidth: (r) => r.mark ? 2.5 : 0.5,
    inset: cell < 14 ? 0 : 1, title: (r) => `${r.y} · ${r.x}\n${r.tip ?? r.t ?? shown(r.v, spec)}`, tip: true })];
  const longest = Math.max(0, ...panel.rows.map((r) => String(r.t ?? "").length));
  if (!spec.bare && cell > longest * 6 + 2) marks.push(Plot.text(panel.rows, { x: "x", y: "y", text: "t",
    fill: (r) => r.v == null ? "currentColor" : dark(r.v) ? "white" : "black", fontSize: 11, pointerEvents: "none" }));
  return Plot.plot({
    width, marginLeft: left, marginTop: 8, marginRight: 8, marginBottom: turned ? 132 : 30,
    height: spec.ys.length * Math.max(spec.small ? 15 : 22, Math.min(44, cell)) + (turned ? 140 : 38),
    x: { type: "band", domain: spec.xs, label: null, tickRotate: turned ? -50 : 0, ticks: spec.xs.filter((_, i) => i % every === 0), tickFormat: (d) => short(d, 24), tickSize: 0 },
    y: { type: "band", domain: spec.ys, label: null, tickFormat: (d) => short(d, most), tickSize: 0 }, color: { type: "identity" }, marks,
  });
}

function bars(panel, spec, width) {
  const [left, most] = leftOf(spec.ys, width);
  return Plot.plot({
    width, marginLeft: left, marginRight: 24, marginBottom: 36, height: spec.ys.length * (spec.small ? 18 : 26) + 48,
    x: { label: spec.xLabel, grid: true, tickFormat: ticks(spec), ticks: Math.max(2, width / 110), labelAnchor: "right" }, y: { type: "band", domain: spec.ys, label: null, tickFormat: (d) => short(d, most), tickSize: 0 },
    color: { type: "identity" },
    marks: [Plot.barX(panel.rows, Plot.stackX({ order: null, x: "v", y: "y", fill: (r) => colour(spec.series.indexOf(r.s)), stroke: "var(--ground)", strokeWidth: 0.7,
      title: (r) => `${r.y}\n${r.s}: ${r.t ?? shown(r.v, spec)}`, tip: true })),
      ...(panel.planned?.length ? [Plot.tickX(panel.planned, { x: "v", y: "y", stroke: "currentColor", strokeWidth: 3 })] : [])],
  });
}

function dots(panel, spec, width) {
  const [left, most] = leftOf(spec.ys, width);
  return Plot.plot({
    width, marginLeft: left, marginRight: 16, marginBottom: 36, height: spec.ys.length * 24 + 52,
    x: { label: spec.xLabel, grid: true, tickFormat: ticks(spec), ticks: Math.max(2, width / 90), nice: true, labelAnchor: "right" },
    y: { type: "band", domain: spec.ys, label: null, tickFormat: (d) => short(d, most), tickSize: 0, grid: true },
    color: { type: "identity" },
    marks: [...(spec.rule != null ? [Plot.ruleX([spec.rule], { stroke: "currentColor" })] : []),
      Plot.ruleY(panel.rows.filter((r) => r.lo != null), { x1: "lo", x2: "hi", y: "y", stroke: (r) => colour(r.c ?? 0), strokeWidth: 3, strokeOpacity: 0.55 }),
      Plot.dot(panel.rows, { x: "v", y: "y", r: 5, fill: (r) => colour(r.c ?? 0), symbol: (r) => symbol(r.c ?? 0), title: (r) => `${r.y}\n${r.t ?? shown(r.v, spec)}`, tip: true })],
    symbol: { type: "identity" },
  });
}

const KINDS = { lines, heat, bars, dots };

function legend(spec) {
  const list = document.createElement("ul");
  list.className = "legend";
  spec.series.slice(0, 24).forEach((name, i) => {
    const item = document.createElement("li"), svg = d3.create("svg").attr("width", 14).attr("height", 14).attr("aria-hidden", "true");
    const shape = spec.kind === "lines" ? symbol(i) : "square", types = { circle: d3.symbolCircle, square: d3.symbolSquare, triangle: d3.symbolTriangle, diamond: d3.symbolDiamond, cross: d3.symbolCross, star: d3.symbolStar, wye: d3.symbolWye };
    svg.append("path").attr("transform", "translate(7,7)").attr("d", d3.symbol(types[shape], 70)()).attr("fill", colour(i));
    item.append(svg.node(), document.createTextNode(name));
    list.append(item);
  });
  return list;
}

function label(svg, title, about) { // one picture with a title and a description: its parts are none for a screen reader
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", title);
  svg.setAttribute("aria-describedby", about);
  for (const part of svg.querySelectorAll("[aria-label]")) { part.setAttribute("data-mark", part.getAttribute("aria-label")); part.removeAttribute("aria-label"); }
  for (const part of svg.querySelectorAll("[aria-description]")) part.removeAttribute("aria-description");
}

function draw(id) {
  const spec = figures[id], place = document.getElementById("draw-" + id);
  const panels = spec.views ? spec.views[place.dataset.view || Object.keys(spec.views)[0]] : { panels: spec.panels };
  const shownSpec = { ...spec, ...panels }, list = shownSpec.panels;
  const whole = place.clientWidth || 340, columns = list.length > 1 ? Math.max(1, Math.min(list.length, Math.floor(whole / (spec.least ?? 300)))) : 1;
  const width = Math.floor((whole - 16 * (columns - 1)) / columns);
  const made = list.map((panel) => {
    const box = document.createElement("div");
    if (panel.title) { const head = document.createElement("p"); head.className = "panel"; head.textContent = panel.title; box.append(head); }
    const plot = KINDS[spec.kind](panel, { ...shownSpec, ...panel.own }, width);
    label(plot, spec.title + (panel.title ? ", " + panel.title : ""), "about-" + id);
    box.append(plot);
    return box;
  });
  place.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  place.replaceChildren(...made);
  place.dataset.drawn = "yes";
  if (shownSpec.series && shownSpec.series.length > 1 && !place.nextElementSibling?.classList.contains("legend")) place.after(legend(shownSpec));
}

function components(tasks, jaccard, threshold) {
  const left = new Set(tasks.keys()), groups = [];
  while (left.size) {
    const members = [], frontier = [left.values().next().value];
    while (frontier.length) {
      const i = frontier.pop();
      if (!left.delete(i)) continue;
      members.push(i);
      for (const j of left) if (jaccard[i][j] >= threshold) frontier.push(j);
    }
    groups.push(members.sort((a, b) => a - b).map((i) => tasks[i]));
  }
  return groups;
}

function slider() {
  const input = document.getElementById("tau"), told = document.getElementById("tau-groups");
  if (!input) return;
  const spec = figures["overlap"];
  const update = () => {
    const tau = Number(input.value), groups = components(spec.xs, spec.jaccard, tau);
    for (const row of spec.panels[0].rows) row.mark = row.x !== row.y && row.v >= tau;
    document.getElementById("tau-value").textContent = tau.toPrecision(2);
    input.setAttribute("aria-valuetext", `τ ${tau.toPrecision(2)}: ${groups.length} groups`);
    told.replaceChildren(...groups.map((members) => { const item = document.createElement("li"); item.textContent = members.join(", "); return item; }));
    document.getElementById("tau-count").textContent = groups.length === 1 ? "one group" : groups.length + " groups";
    draw("overlap");
  };
  input.addEventListener("input", update);
  update();
}

for (const id of Object.keys(figures)) {
  for (const radio of document.querySelectorAll(`input[name="view-${CSS.escape(id)}"]`))
    radio.addEventListener("change", () => { document.getElementById("draw-" + id).dataset.view = radio.value; draw(id); });
  draw(id);
}
slider();
addEventListener("beforeprint", () => { for (const folded of document.querySelectorAll("header details")) folded.open = true; });
let width = innerWidth, waiting;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  clearTimeout(waiting);
  waiting = setTimeout(() => Object.keys(figures).forEach(draw), 150);
});
document.documentElement.dataset.ready = "yes";
})();
