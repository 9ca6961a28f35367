"use strict";
// Charts, drawn by plotly when they come into view.

const plotlyLoaded = new Promise((resolve) => document.querySelector("script[src='plotly.min.js']").addEventListener("load", resolve));
const waiting = new Map(); // elements whose chart is not drawn yet
const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting && waiting.has(target)) {
      const draw = waiting.get(target);
      waiting.delete(target);
      plotlyLoaded.then(draw);
    }
  }
}, { rootMargin: "400px" });

/** Draw a chart once its element is near the window; a later call replaces it. */
function chart(place, traces, layout, onclick = null) {
  const axis = { gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true };
  const { xaxis = {}, yaxis = {}, ...rest } = layout;
  const whole = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--text") },
    margin: { l: 50, r: 14, t: 14, b: 40 }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
  waiting.set(place, () => {
    Plotly.react(place, traces, whole, { responsive: true, displaylogo: false, displayModeBar: false });
    place.removeAllListeners("plotly_click");
    if (onclick) place.on("plotly_click", (event) => onclick(event.points[0]));
  });
  seen.unobserve(place);
  seen.observe(place);
}

const TRAINING = { type: "log", title: { text: "training images" }, tickvals: [0.5, 1, 10, 100, 1000, 10000, 100000],
  ticktext: ["0", "1", "10", "100", "1k", "10k", "100k"] };

/** Dots of classes against their training images, coloured by frequency. */
function classDots(place, values, title, extra = {}) {
  const traces = Object.entries(FREQUENCIES).map(([letter, name]) => {
    const members = [...values.keys()].filter((i) => CLASSES.frequency[i] === letter && values[i] !== null && values[i] !== undefined);
    return {
      name, type: "scatter", mode: "markers", customdata: members, marker: { color: css(`--${letter}`), size: 7, opacity: 0.7 },
      x: members.map((i) => Math.max(CLASSES.train[i], 0.5)), y: members.map((i) => values[i]),
      text: members.map((i) => CLASSES.name[i].replaceAll("_", " ").replaceAll("<", "&lt;")),
      hovertemplate: `<b>%{text}</b><br>%{x} training images<br>${title} %{y:.2f}<extra></extra>`,
    };
  });
  chart(place, traces, { xaxis: TRAINING, yaxis: { title: { text: title }, ...extra } },
    (point) => openGallery({ class: point.customdata }));
}

function drawClassCharts() {
  const aps = REPORT.aps[state.task], [a, b] = [REPORT.runs[state.a], REPORT.runs[state.b]];
  byId("ap-caption").textContent = `AP of ${TASKS[state.task]}, ${b}`;
  classDots(byId("chart-ap"), aps[state.b], "AP", { range: [-3, 103] });
  if (isSingle) return;
  byId("change-caption").textContent = `Change of the AP, ${b} − ${a}`;
  classDots(byId("chart-change"), aps[state.a].map((value, i) => difference(value, aps[state.b][i])), "change",
    { zeroline: true, zerolinecolor: css("--muted") });
}

function drawErrorCharts() {
  const chosen = state.a === state.b ? [state.a] : [state.a, state.b];
  const most = Math.max(...REPORT.errors.flatMap((run) => Object.values(run).flatMap((group) => group.gains)));
  const figures = ["rcf", "r", "c", "f"].map((letters) => {
    const place = el("div", { class: "chart low" });
    chart(place, chosen.map((run, i) => ({
      type: "bar", name: REPORT.runs[run], x: ERRORS, y: REPORT.errors[run][letters].gains,
      marker: { color: css(`--runs-${isSingle ? 1 : i}`) }, hovertemplate: `%{x}: +%{y:.2f} AP50<extra></extra>`,
    })), { showlegend: false, bargap: 0.3, xaxis: { tickangle: -40 }, yaxis: { range: [0, 1.05 * most || 1] } });
    return el("figure", {}, el("figcaption", {}, letters.length > 1 ? "All classes: ΔAP50" : `Of ${FREQUENCIES[letters]} classes`), place);
  });
  byId("error-charts").replaceChildren(...figures);
  byId("error-legend").replaceChildren(...chosen.flatMap((run, i) => [el("i", { style: `background: var(--runs-${isSingle ? 1 : i})` }), REPORT.runs[run]]));
}

let whyStage = 0, whyRun = "";

function drawWhy() {
  const runs = Object.keys(REPORT.why), place = byId("why-content");
  if (!runs.length) {
    place.replaceChildren(el("p", { class: "note" }, "No checkpoint has been used for this page: there is nothing to say about weights."));
    return;
  }
  if (!whyRun) whyRun = runs[0];
  const why = REPORT.why[whyRun], stage = Math.min(whyStage, why.norms.length - 1);
  const runSelect = el("select", { onchange: (event) => { whyRun = event.target.value; drawWhy(); } });
  fill(runSelect, runs.map((run) => [run, run]), whyRun);
  const stageSelect = el("select", { id: "why-stage", onchange: (event) => { whyStage = Number(event.target.value); drawWhy(); } });
  fill(stageSelect, why.norms.map((_, i) => [i, `stage ${i + 1}`]), stage);
  const figure = (caption, note) => {
    const chartPlace = el("div", { class: "chart" });
    return [chartPlace, el("figure", {}, el("figcaption", {}, caption, el("span", { class: "note" }, note)), chartPlace)];
  };
  const figures = el("div", { class: "charts" });
  const [norms, normFigure] = figure("Norm of the class weights, ‖w‖", "Longer weights give a class larger logits; a normalised classifier divides by them.");
  figures.append(normFigure);
  place.replaceChildren(el("div", { class: "tools" },
    runs.length > 1 ? el("label", {}, "model ", runSelect) : el("span", {}, `Model: ${whyRun}`),
    why.norms.length > 1 ? el("label", {}, "box head of ", stageSelect) : null), ...dominantNote(why), figures);
  classDots(norms, why.norms[stage], "‖w‖");
  if (!why.raised) {
    place.append(el("p", { class: "note" }, "The classifier is not normalised, has no mean direction yet, or cosines were not asked for: norms are all there is."));
    return;
  }
  drawDirection(why, stage, figure, figures);
}

/** Whether the mean direction is largely that of one class. */
function dominantNote(why) {
  if (!why.raised) return [];
  if (!why.dominant) return [el("p", { class: "note", id: "dominant" }, "The mean direction is not that of one class.")];
  const { label, cosine, next_cosine: next } = why.dominant;
  const share = why.shares ? ` has ${(100 * why.shares[label]).toFixed(0)}% of all training objects and` : " has";
  return [el("p", { class: "warning", id: "dominant" }, classLink(label), `${share} a cosine of ${cosine.toFixed(2)} between its weights and the mean direction; the next class has ${next.toFixed(2)}. ` +
    "This is the case in which TDE hurts: the direction is largely that of this one class, and subtracting it takes the evidence for the class away.")];
}

function drawDirection(why, stage, figure, figures) {
  const groups = { ...FREQUENCIES, b: "background" };
  const cosines = why.cosines[stage];
  const [angles, angleFigure] = figure("cos(x, d̂) of boxes with the mean direction", "TDE subtracts α · cos(x, d̂) times a class's part along d̂: boxes far to the right lose most.");
  const [bars, barFigure] = figure("Classes that the mean direction raises most", "In logits, on average over foreground boxes; relative to the mean over all classes.");
  figures.append(angleFigure, barFigure);
  const centres = Array.from({ length: 40 }, (_, i) => -0.975 + 0.05 * i);
  const used = [...centres.keys()].filter((i) => Object.values(cosines).some((group) => group.count && group.shares[i] > 0));
  chart(angles, Object.entries(groups).filter(([letter]) => cosines[letter].count).map(([letter, name]) => ({
    type: "scatter", mode: "lines", line: { color: css(`--${letter}`), shape: "hvh", dash: letter === "b" ? "dot" : "solid" },
    name: `${name} (mean ${cosines[letter].mean.toFixed(2)})`, x: centres, y: cosines[letter].shares.map((share) => 100 * share),
    hovertemplate: `${name}: %{y:.1f}% at %{x:.2f}<extra></extra>`,
  })), { xaxis: { title: { text: "cos(x, d̂)" }, range: [centres[used[0]] - 0.15, centres[used[used.length - 1]] + 0.15] }, yaxis: { title: { text: "boxes (%)" }, rangemode: "tozero" } });
  const raised = why.raised[stage], mean = raised.reduce((sum, value) => sum + value, 0) / raised.length;
  const top = [...raised.keys()].sort((i, j) => raised[j] - raised[i]).slice(0, 12).reverse();
  const share = (i) => (why.shares ? `<br>${(100 * why.shares[i]).toFixed(1)}% of the training objects` : "");
  chart(bars, [{
    type: "bar", orientation: "h", customdata: top, x: top.map((i) => raised[i] - mean), y: top.map((i) => CLASSES.name[i].replaceAll("_", " ").slice(0, 26)),
    marker: { color: top.map((i) => css(`--${CLASSES.frequency[i]}`)) },
    hovertext: top.map((i) => `${CLASSES.train[i].toLocaleString("en")} training images${share(i)}`), hovertemplate: "%{y}: %{x:.2f}<br>%{hovertext}<extra></extra>",
  }], { xaxis: { title: { text: "logits" } } }, (point) => openGallery({ class: point.customdata }));
  const alphas = why.alphas[stage];
  figures.append(el("figure", {}, el("figcaption", {}, "In numbers"), el("table", {},
    el("thead", {}, el("tr", {}, el("th", { class: "text" }, "boxes"), el("th", {}, "number"), el("th", {}, "mean cos(x, d̂)"), el("th", {}, `α · cos, α = ${alphas}`))),
    el("tbody", {}, ...Object.entries(groups).map(([letter, name]) => el("tr", {}, el("td", { class: "text" }, name), el("td", {}, cosines[letter].count.toLocaleString("en")),
      el("td", {}, cosines[letter].count ? cosines[letter].mean.toFixed(3) : "–"), el("td", {}, cosines[letter].count ? (alphas * cosines[letter].mean).toFixed(3) : "–")))))));
}

// What a training logs, by what the names look like; the rest is not drawn.
const CURVES = [
  ["Losses", /^(total_loss|loss_.*)$/], ["Box AP", /^bbox\/AP[rcf]?$/], ["Mask AP", /^segm\/AP[rcf]?$/],
  ["Probability of a box's own class", /probability\//], ["cos(x, d̂) of foreground", /tde\/foreground_cosine/], ["Learning rate", /^lr$/],
];
const PALETTE = ["#0b72c4", "#d55e00", "#00875f", "#a23b9c", "#b8860b", "#5c6bc0", "#8a94a0", "#c2185b", "#00a3a3", "#7a5c3e", "#6aa84f", "#e06666"];

function drawCurves() {
  const runs = Object.keys(REPORT.curves).filter((run) => Object.keys(REPORT.curves[run]).length);
  const figures = [];
  for (const [title, pattern] of CURVES) {
    const traces = [];
    runs.forEach((run, r) => Object.entries(REPORT.curves[run]).filter(([name]) => pattern.test(name)).forEach(([name, [x, y]], i) => traces.push({
      name: (runs.length > 1 ? `${run}: ` : "") + name, x, y, mode: x.length > 1 ? "lines" : "markers",
      line: { color: PALETTE[i % PALETTE.length], width: 1.5, dash: ["solid", "dot", "dash", "dashdot"][r % 4] }, marker: { size: 8 },
    })));
    if (!traces.some(({ x }) => x.length > 1)) continue; // one evaluation is no curve
    const place = el("div", { class: "chart tall" });
    chart(place, traces, { xaxis: { title: { text: "iteration" } }, legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, font: { size: 11 } }, ...(title === "Losses" ? { yaxis: { rangemode: "tozero" } } : {}) });
    figures.push(el("figure", {}, el("figcaption", {}, title), place));
  }
  if (!figures.length) figures.push(el("p", { class: "note" }, "The runs have no metrics.json of a training."));
  byId("curves").replaceChildren(...figures);
}

function drawSweeps() {
  const tables = Object.entries(REPORT.sweeps).filter(([, rows]) => rows.length).map(([run, rows]) => {
    const keys = Object.keys(rows[0]).filter((key) => /^(bbox|segm)\/AP(50|75|r|c|f)?$/.test(key));
    const value = (row, key) => (row[key] === "" || row[key] === undefined ? null : Number(row[key]));
    const best = Object.fromEntries(keys.map((key) => [key, Math.max(...rows.map((row) => value(row, key) ?? -1))]));
    const place = el("div");
    sortableTable(place, [{ title: "adjustments", text: true, value: (row) => row.adjustments, cell: (row) => el("td", { class: "text" }, row.adjustments) },
      ...keys.map((key) => ({ title: key.replace("bbox/", "box ").replace("segm/", "mask "), value: (row) => value(row, key),
        cell: (row) => el("td", {}, value(row, key) === best[key] ? el("strong", {}, number(value(row, key), 2)) : number(value(row, key), 2)) }))],
    rows, (row) => row.adjustments || "", { column: Math.min(1, keys.length), descending: true });
    return el("div", {}, el("h3", {}, `Sweep of adjustments, ${run}`), place);
  });
  byId("sweeps").replaceChildren(...tables);
}

parts.push(drawClassCharts, drawErrorCharts, drawWhy);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { redraw(); drawCurves(); });
