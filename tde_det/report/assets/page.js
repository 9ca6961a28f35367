"use strict";
// The page's state, what its parts share, and the summary. REPORT is in data/report.js.

const FREQUENCIES = { r: "rare", c: "common", f: "frequent" };
const TASKS = { bbox: "boxes", segm: "masks" };
const METRICS = { AP: "AP", AP50: "AP50", AP75: "AP75", APr: "AP rare", APc: "AP common", APf: "AP frequent" };
const CLASSES = REPORT.classes;
const isSingle = REPORT.runs.length === 1;
const state = { task: Object.keys(REPORT.metrics).pop(), a: 0, b: isSingle ? 0 : 1 };
const parts = []; // functions that draw a part of the page from the state

/** An element with attributes, event handlers (on…) and children; texts are never read as html. */
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const byId = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const number = (value, digits = 1) => (value === null ? "–" : value.toFixed(digits));
const signed = (value, digits = 1) => (value === null ? "–" : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits)).replace(/^[−+](0\.0+)$/, "$1");
const difference = (before, after) => (before === null || after === null ? null : after - before);
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : word.endsWith("ss") ? "es" : "s"}`;

/** The interval of a difference between the two chosen runs: [low, high], null where unknown. */
function chosenInterval(task, get) {
  const { a, b } = state;
  if (a === b) return [null, null];
  const [low, high] = get(REPORT.pairs[`${Math.min(a, b)},${Math.max(a, b)}`][task]);
  if (low === null) return [null, null];
  return a < b ? [low, high] : [-high, -low];
}

const metricInterval = (metric, task) => chosenInterval(task, (pair) => pair.metrics[metric]);
const classInterval = (i) => chosenInterval(state.task, (pair) => [pair.classes[0][i], pair.classes[1][i]]);
const isSure = ([low, high]) => low !== null && (low > 0 || high < 0);
const direction = (value) => (value > 0 ? "better" : value < 0 ? "worse" : "");

/** A table's cell with a change, coloured, and its interval below. */
function changeCell(value, bounds) {
  const kind = value === null ? "" : direction(value);
  const sure = isSure(bounds) ? ` sure-${kind}` : "";
  return el("td", { class: `${kind}${sure}` }, signed(value),
    bounds[0] === null ? null : el("span", { class: "small" }, `${signed(bounds[0])} to ${signed(bounds[1])}`));
}

/** Classes with objects, by whether and how surely their AP changed. */
function countChanges() {
  const counts = { better: 0, worse: 0, surelyBetter: 0, surelyWorse: 0, withInterval: 0 };
  const [before, after] = [state.a, state.b].map((run) => REPORT.aps[state.task][run]);
  before.forEach((value, i) => {
    const kind = direction(difference(value, after[i]) || 0);
    if (classInterval(i)[0] !== null) counts.withInterval += 1;
    if (!kind) return;
    counts[kind] += 1;
    if (isSure(classInterval(i))) counts[kind === "better" ? "surelyBetter" : "surelyWorse"] += 1;
  });
  return counts;
}

/** The metrics of a task, a run a row, and their differences. */
function headline(task) {
  const values = REPORT.metrics[task], metrics = Object.keys(METRICS);
  const rows = REPORT.runs.map((run, i) => el("tr", {}, el("th", { class: "text" }, run),
    ...metrics.map((metric) => el("td", {}, number(values[i][metric])))));
  if (!isSingle) rows.push(el("tr", { class: "differences" }, el("th", { class: "text" }, REPORT.runs.length > 2 ? `${REPORT.runs[state.b]} − ${REPORT.runs[state.a]}` : "difference"),
    ...metrics.map((metric) => changeCell(difference(values[state.a][metric], values[state.b][metric]), metricInterval(metric, task)))));
  return el("div", {}, el("h3", {}, `AP of ${TASKS[task]}`), el("table", {},
    el("thead", {}, el("tr", {}, el("th"), ...metrics.map((metric) => el("th", {}, METRICS[metric])))), el("tbody", {}, ...rows)));
}

function drawSummary() {
  const [a, b] = [REPORT.runs[state.a], REPORT.runs[state.b]];
  byId("title").textContent = isSingle ? a : `${b} against ${a}`;
  document.title = byId("title").textContent;
  const total = CLASSES.objects.reduce((sum, count) => sum + count, 0);
  const set = `${REPORT.dataset}: ${plural(REPORT.images, "image")}, ${plural(total, "object")}, ` +
    `${CLASSES.name.length.toLocaleString("en")} classes, ${CLASSES.objects.filter(Boolean).length.toLocaleString("en")} of them with objects.`;
  const changes = countChanges();
  byId("lead").textContent = set + (isSingle ? "" :
    ` By ${TASKS[state.task]}, ${changes.better} classes improved and ${changes.worse} got worse. ` +
    (changes.withInterval ? `Of the ${changes.withInterval} in at least ${REPORT.minImages} images, ${changes.surelyBetter} improved and ${changes.surelyWorse} got worse with an interval that leaves out 0.`
      : `None is in at least ${REPORT.minImages} images, so that no class's change has an interval.`));
  byId("headline").replaceChildren(...Object.keys(REPORT.metrics).map(headline));
  byId("headline-note").textContent = isSingle ? "" :
    `Below a difference: its 95% interval over ${REPORT.resamples} resamples of the images. ` +
    "A tinted cell is a difference whose interval leaves out 0. " +
    `A class needs ${REPORT.minImages} images with its objects for an interval.`;
}

function drawNotes() {
  const notes = [
    "AP, AP50 and AP75 are those of lvis-api: the best 300 detections of an image, and of these the ones of classes that the image is annotated with or known to lack. Rare classes have 1 to 10 training images, common ones up to 100.",
    `An interval is the range between the 2.5th and 97.5th percentile of ${REPORT.resamples} resamples. A resample draws as many images as there are, with replacement; both runs are measured on the same ones. AP rare, common and frequent leave out classes without an object in the resample. The interval says what other images could change, not what another training could.`,
    "Errors are those of TIDE (Bolya et al., 2020) at IoU 0.5 and 0.1, of boxes. As in LVIS, detections of classes that an image is neither annotated with nor known to lack do not count, nor do unmatched ones of classes that it is not exhaustively annotated with.",
    `The gallery has the detections with a score of at least ${REPORT.minScore}, at most ${REPORT.perImage} of an image. Changed for the better: of a class in an image, objects found minus errors has risen among these.`,
  ];
  byId("notes").replaceChildren(...notes.map((note) => el("li", {}, note)));
}

/** Give a select element its options. */
function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
  select.value = chosen;
}

function redraw() {
  for (const draw of parts) draw();
}

function start() {
  document.body.classList.toggle("single", isSingle);
  const runs = REPORT.runs.map((name, i) => [i, name]);
  fill(byId("run-a"), runs, state.a);
  fill(byId("run-b"), runs, state.b);
  fill(byId("task"), Object.keys(REPORT.metrics).map((task) => [task, TASKS[task]]), state.task);
  for (const [id, key] of [["run-a", "a"], ["run-b", "b"]]) {
    byId(id).addEventListener("change", (event) => { state[key] = Number(event.target.value); redraw(); });
  }
  byId("task").addEventListener("change", (event) => { state.task = event.target.value; redraw(); });
  redraw();
  document.body.dataset.ready = Math.round(performance.now());
}

parts.push(drawSummary, drawNotes);
