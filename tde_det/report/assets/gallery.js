"use strict";
// Pictures with objects and detections. INDEX is in data/index.js, the rest in data/shard-….js.

// An entry of INDEX: [id, width, height, [[class, objects, then per run: found, errors, kinds], …]].
const CORRECT = 5, IGNORED = 6; // verdicts beyond the kinds of errors
const VERDICTS = [...ERRORS.slice(0, 5), "correct", "not counted by LVIS"];
const PAGE = 12; // cards added at a time
const filters = { class: -1, // all; -2: a name that no class has
  frequency: "", change: "", error: "", run: "any", score: 0.3 };
const shards = new Map(); // promises
const arrived = new Map(); // what resolves them
let found = []; // positions in INDEX, after filtering
let shown = 0; // how many of them have a card
let zoomed = 0; // position in `found`

/** Called by the scripts in data/. */
function loadedShard(k, images) { arrived.get(k)(images); }

/** Objects and detections of an image, once its script is there. */
async function imageData(i) {
  const k = Math.floor(i / REPORT.shardSize);
  if (!shards.has(k)) {
    shards.set(k, new Promise((resolve, reject) => {
      arrived.set(k, resolve);
      document.head.append(el("script", { src: `data/shard-${k}.js`, onerror: reject }));
    }));
  }
  return (await shards.get(k))[i % REPORT.shardSize];
}

const countOf = (entry, run, k) => entry[2 + 3 * run + k]; // k: 0 found, 1 errors, 2 kinds
const changeOf = (entry) => countOf(entry, state.b, 0) - countOf(entry, state.b, 1) - countOf(entry, state.a, 0) + countOf(entry, state.a, 1);

function entryFits(entry) {
  if (filters.class !== -1 && entry[0] !== filters.class) return false;
  if (filters.frequency && CLASSES.frequency[entry[0]] !== filters.frequency) return false;
  if (filters.change === "better" && changeOf(entry) <= 0) return false;
  if (filters.change === "worse" && changeOf(entry) >= 0) return false;
  if (filters.error === "") return true;
  const runs = filters.run === "any" ? [state.a, state.b] : [Number(filters.run)];
  return runs.some((run) => countOf(entry, run, 2) & (1 << Number(filters.error)));
}

function filterGallery() {
  const hasFilter = filters.class !== -1 || filters.frequency || filters.change || filters.error !== "";
  const size = new Map();
  found = [];
  INDEX.forEach(([, , , entries], i) => {
    const fitting = entries.filter(entryFits);
    if (hasFilter && !fitting.length) return;
    found.push(i);
    size.set(i, fitting.reduce((sum, entry) => sum + Math.abs(changeOf(entry)), 0));
  });
  if (filters.change) found.sort((i, j) => size.get(j) - size.get(i) || i - j);
  byId("gallery-count").textContent = `${plural(found.length, "image")} of ${INDEX.length.toLocaleString("en")}` +
    (filters.change ? ", those that changed most first." : ".") + ` Counts are of detections with a score of at least ${REPORT.minScore}.`;
  byId("cards").replaceChildren();
  shown = 0;
  addCards();
}

function addCards() {
  for (const i of found.slice(shown, shown + PAGE)) byId("cards").append(card(i));
  shown = Math.min(found.length, shown + PAGE);
  byId("more").textContent = `Show ${Math.min(PAGE, found.length - shown)} more of ${(found.length - shown).toLocaleString("en")}`;
  byId("more").hidden = shown === found.length;
}

/** An image with its panels; they are filled when it comes near the window. */
function card(i) {
  const [id, , , entries] = INDEX[i], place = found.indexOf(i);
  const fitting = entries.filter(entryFits);
  const total = (run, k) => fitting.reduce((sum, entry) => sum + countOf(entry, run, k), 0);
  const text = (run) => `${REPORT.runs[run]}: ${total(run, 0)} found, ${plural(total(run, 1), "error")}`;
  const objects = fitting.reduce((sum, entry) => sum + entry[1], 0);
  const panels = el("div", { class: "panels" });
  const element = el("article", { class: "card", "data-image": id }, el("div", { class: "card-head" },
    el("strong", {}, `image ${id}`), el("span", { class: "note" }, [plural(objects, "object"), text(state.a), ...(isSingle ? [] : [text(state.b)])].join(" · "))), panels);
  fillPanels(panels, i, "thumbnails", () => zoom(place));
  return element;
}

/** Object panel and a panel of each chosen run, in empty frames of the right size at first. */
async function fillPanels(place, i, folder, onclick) {
  const titles = ["ground truth", ...(isSingle ? [state.a] : [state.a, state.b]).map((run) => REPORT.runs[run])];
  const [, width, height] = INDEX[i];
  const frames = titles.map((title) => {
    const picture = el("div", { class: "picture", style: `aspect-ratio: ${width} / ${height}` },
      el("img", { src: `${folder}/${i}.jpg`, loading: "lazy", alt: `image ${INDEX[i][0]}` }));
    return [picture, el("figure", { class: "panel", onclick }, el("figcaption", { title }, title), picture)];
  });
  place.replaceChildren(...frames.map(([, figure]) => figure));
  const [objects, detections] = await imageData(i);
  frames.forEach(([picture], k) => {
    const run = k === 1 ? state.a : state.b;
    picture.append(k === 0 ? drawing(i, objects, objectStyle) : drawing(i, detections[run].filter(isDrawn), detectionStyle));
  });
}

const isChosen = ([c]) => filters.class === -1 ? !filters.frequency || CLASSES.frequency[c] === filters.frequency : c === filters.class;
const isDrawn = (detection) => detection[3] >= filters.score || (filters.class >= 0 && detection[0] === filters.class);
const className = (c) => (c < 0 ? "unknown class" : CLASSES.name[c].replaceAll("_", " "));

function objectStyle([c, , , called]) {
  const name = (run) => `${REPORT.runs[run]}: ${called[run] < 0 ? "nothing" : className(called[run])}`;
  const chosen = isSingle ? [state.a] : [state.a, state.b];
  return { kind: CLASSES.frequency[c], label: className(c), title: [`${className(c)} (${FREQUENCIES[CLASSES.frequency[c]]})`, ...chosen.map(name)].join("\n") };
}

function detectionStyle([c, , , score, verdict]) {
  const kind = verdict === CORRECT ? "correct" : verdict === IGNORED ? "uncounted" : "wrong";
  return { kind, label: `${className(c)} ${Math.round(100 * score)}`, title: `${className(c)}, score ${score}\n${VERDICTS[verdict]}` };
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Boxes, outlines and labels over an image; those that the filter does not choose are faint. */
function drawing(i, things, style) {
  const [, width, height] = INDEX[i], size = width / 30, limit = 28;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" });
  const labels = [];
  for (const thing of things) { // the best first, on top
    const [, [x, y, w, h], outline] = thing, { kind, label, title } = style(thing);
    const group = svg("g", isChosen(thing) ? {} : { class: "faint" }, svg("title", {}));
    group.firstChild.textContent = title;
    if (outline) group.append(svg("path", { class: `outline ${kind}`, d: outline }));
    group.append(svg("rect", { class: `box ${kind}`, x, y, width: w, height: h }));
    root.prepend(group);
    if (isChosen(thing)) {
      const short = label.length > limit ? `${label.slice(0, limit)}…` : label, top = Math.max(size, y - size / 4);
      const text = svg("text", { x: Math.max(0, Math.min(x + 2, width - 0.62 * size * short.length)), y: top, "font-size": size, "stroke-width": size / 4 });
      text.textContent = short;
      // A label that would cover others moves down a little, or is left out: hovering tells it too.
      for (let line = 1; line < 4 && labels.some((other) => covers(other, text, size)); line++) text.setAttribute("y", top + line * size);
      if (!labels.some((other) => covers(other, text, size))) labels.push(text);
    }
  }
  root.append(...labels);
  return root;
}

/** Whether two labels of about known widths overlap. */
function covers(one, other, size) {
  const [x, y, x2, y2] = [one, other].flatMap((text) => ["x", "y"].map((key) => Number(text.getAttribute(key))));
  return Math.abs(y - y2) < 0.95 * size && x < x2 + 0.55 * size * other.textContent.length && x2 < x + 0.55 * size * one.textContent.length;
}

function zoom(place) {
  zoomed = place;
  const i = found[place];
  byId("zoom-title").textContent = `image ${INDEX[i][0]} (${place + 1} of ${found.length.toLocaleString("en")})`;
  const panels = byId("zoom-panels");
  panels.classList.remove("one");
  fillPanels(panels, i, "images", (event) => {
    const isLarge = panels.classList.toggle("one");
    event.currentTarget.classList.toggle("large", isLarge);
    fitPictures();
  });
  if (!byId("zoom").open) byId("zoom").showModal();
  fitPictures();
}

/** Let the pictures of the dialog fit its height. */
function fitPictures() {
  const [, width, height] = INDEX[found[zoomed]], room = byId("zoom").clientHeight - 110;
  for (const picture of byId("zoom-panels").querySelectorAll(".picture")) picture.style.maxWidth = `${Math.round((room * width) / height)}px`;
}

/** Set some filters, and all others off. */
function setFilters(chosen) {
  Object.assign(filters, { class: -1, frequency: "", change: "", error: "", run: "any" });
  Object.assign(filters, chosen);
  showFilters();
  filterGallery();
}

/** Show the gallery with some filters. */
function openGallery(chosen) {
  setFilters(chosen);
  byId("gallery").scrollIntoView();
}

/** Write the filters into the form. */
function showFilters() {
  byId("filter-class").value = filters.class < 0 ? "" : CLASSES.name[filters.class];
  for (const key of ["frequency", "change", "error", "run"]) byId(`filter-${key}`).value = String(filters[key]);
  byId("score").value = filters.score;
  byId("score-value").textContent = filters.score.toFixed(2);
}

function readFilters() {
  const name = byId("filter-class").value.trim().toLowerCase().replaceAll(" ", "_");
  const position = CLASSES.name.findIndex((other) => other.toLowerCase().replaceAll(" ", "_") === name);
  if (!name) filters.class = -1;
  else if (filters.class < 0 || byId("filter-class").value !== CLASSES.name[filters.class]) filters.class = position < 0 ? -2 : position;
  for (const key of ["frequency", "change", "error", "run"]) filters[key] = byId(`filter-${key}`).value;
  filters.score = Number(byId("score").value);
  byId("score-value").textContent = filters.score.toFixed(2);
  document.body.classList.toggle("no-masks", !byId("masks").checked);
}

function drawGallery() {
  fill(byId("filter-run"), [["any", "any run"], ...(isSingle ? [] : [state.a, state.b].map((run) => [run, REPORT.runs[run]]))], "any");
  filters.run = "any";
  showFilters();
  filterGallery();
}

function startGallery() {
  byId("class-names").replaceChildren(...CLASSES.name.map((value) => el("option", { value })));
  fill(byId("filter-error"), [["", "any"], ...ERRORS.map((name, kind) => [kind, name])], "");
  byId("score").min = Math.floor(REPORT.minScore * 20) / 20;
  filters.score = Math.max(filters.score, Number(byId("score").min));
  const form = byId("filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", (event) => {
    readFilters();
    if (event.target.id !== "masks") filterGallery();
  });
  form.addEventListener("reset", (event) => { event.preventDefault(); setFilters({}); });
  byId("more").addEventListener("click", addCards);
  byId("close").addEventListener("click", () => byId("zoom").close());
  byId("previous").addEventListener("click", () => zoom(Math.max(0, zoomed - 1)));
  byId("next").addEventListener("click", () => zoom(Math.min(found.length - 1, zoomed + 1)));
  byId("zoom").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") byId("previous").click();
    if (event.key === "ArrowRight") byId("next").click();
  });
}

parts.push(drawGallery);
startGallery();
drawCurves();
drawSweeps();
start(); // all scripts but plotly are there
