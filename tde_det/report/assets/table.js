"use strict";
// Tables that can be sorted and searched, and those of classes, names and errors.

/**
 * A sortable, searchable table.
 * columns: {title, value(row), cell(row), text: is it text}. rows: anything.
 * search(row): what the search box looks in. filters: elements beside it.
 */
function sortableTable(place, columns, rows, search, sorted, filters = []) {
  const order = { ...sorted };
  const input = el("input", { type: "search", placeholder: "search", "aria-label": "search", value: "" });
  const count = el("span", { class: "note" });
  const body = el("tbody");
  const heads = columns.map((column, i) => el("th", {
    class: column.text ? "text" : "", role: "button", tabindex: 0, title: column.hint,
    onclick: () => sortBy(i), onkeydown: (event) => { if (event.key === "Enter") sortBy(i); },
  }, column.title));
  const made = new Map(); // rows are made once

  function sortBy(i) {
    order.descending = order.column === i ? !order.descending : !columns[i].text;
    order.column = i;
    show();
  }

  function show() {
    const { value } = columns[order.column], sign = order.descending ? -1 : 1;
    const words = input.value.trim().toLowerCase();
    const found = rows.filter((row) => search(row).toLowerCase().includes(words));
    found.sort((x, y) => {
      const [p, q] = [value(x), value(y)];
      if (p === null || q === null) return (p === null) - (q === null); // unknown ones are last
      return sign * (typeof p === "string" ? p.localeCompare(q) : p - q);
    });
    for (const row of found) {
      if (!made.has(row)) made.set(row, el("tr", {}, ...columns.map((column) => column.cell(row))));
    }
    body.replaceChildren(...found.map((row) => made.get(row)));
    heads.forEach((head, i) => head.setAttribute("aria-sort",
      i !== order.column ? "none" : order.descending ? "descending" : "ascending"));
    count.textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
  }

  input.addEventListener("input", show);
  place.replaceChildren(el("div", { class: "tools" }, input, ...filters, count),
    el("div", { class: "rows" }, el("table", {}, el("thead", {}, el("tr", {}, ...heads)), body)));
  show();
  return order;
}

/** A class's name, which opens the gallery of the class. */
function classLink(i, filters = {}) {
  if (i < 0) return "nothing";
  const dot = el("span", { class: "dot", style: `background: var(--${CLASSES.frequency[i]})`, title: FREQUENCIES[CLASSES.frequency[i]] });
  return el("button", { class: "link", type: "button", onclick: () => openGallery({ class: i, ...filters }) },
    dot, CLASSES.name[i].replaceAll("_", " "));
}

const numberColumn = (title, value, digits = 0, hint = null) => ({
  title, value, hint, cell: (row) => el("td", {}, value(row) === null ? "–" : value(row).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })),
});

const classOrder = { column: isSingle ? 5 : 7, descending: true };
let classesMeasured = true;

function drawClasses() {
  const aps = REPORT.aps[state.task], before = aps[state.a], after = aps[state.b];
  const change = (i) => difference(before[i], after[i]);
  const columns = [
    { title: "class", text: true, value: (i) => CLASSES.name[i], cell: (i) => el("td", { class: "text" }, classLink(i)) },
    { title: "frequency", text: true, value: (i) => "rcf".indexOf(CLASSES.frequency[i]), cell: (i) => el("td", { class: "text" }, FREQUENCIES[CLASSES.frequency[i]]) },
    numberColumn("training images", (i) => CLASSES.train[i]),
    numberColumn("objects", (i) => CLASSES.objects[i], 0, "in the evaluated images"),
    numberColumn("images", (i) => CLASSES.images[i], 0, "evaluated images with objects"),
    numberColumn(`AP, ${REPORT.runs[state.a]}`, (i) => before[i], 1),
  ];
  if (!isSingle) columns.push(
    numberColumn(`AP, ${REPORT.runs[state.b]}`, (i) => after[i], 1),
    { title: "change", value: change, cell: (i) => {
      const cell = changeCell(change(i), classInterval(i));
      if (change(i)) cell.firstChild.replaceWith(el("button", { class: `link ${direction(change(i))}`, type: "button",
        onclick: () => openGallery({ class: i, change: direction(change(i)) }) }, signed(change(i))));
      return cell;
    } });
  const rows = [...CLASSES.name.keys()].filter((i) => !classesMeasured || before[i] !== null);
  const only = el("label", { class: "check" }, el("input", { type: "checkbox", ...(classesMeasured ? { checked: "" } : {}),
    onchange: (event) => { classesMeasured = event.target.checked; drawClasses(); } }), " only classes with objects");
  sortableTable(byId("class-table"), columns, rows, (i) => CLASSES.name[i].replaceAll("_", " ") + " " + CLASSES.name[i], classOrder, [only]);
}

/** Rows of REPORT.called as objects, for the chosen runs. */
function names() {
  return REPORT.called.map((row) => ({ object: row[0], a: row[1 + state.a], b: row[1 + state.b], count: row[row.length - 1] }));
}

function drawRenamed() {
  const [a, b] = [REPORT.runs[state.a], REPORT.runs[state.b]];
  const sum = (letters, test) => names().reduce((total, row) =>
    total + (letters.includes(CLASSES.frequency[row.object]) && test(row) ? row.count : 0), 0);
  const columns = [["objects", () => true], [`right in ${a}`, (row) => row.a === row.object]];
  if (!isSingle) columns.push([`right in ${b}`, (row) => row.b === row.object],
    ["wrong → right", (row) => row.a !== row.object && row.b === row.object],
    ["right → wrong", (row) => row.a === row.object && row.b !== row.object],
    ["wrong → another wrong name", (row) => row.a !== row.b && row.a !== row.object && row.b !== row.object]);
  byId("renamed").replaceChildren(el("table", {},
    el("thead", {}, el("tr", {}, el("th", { class: "text" }, "classes"), ...columns.map(([title]) => el("th", {}, title)))),
    el("tbody", {}, ...["rcf", "r", "c", "f"].map((letters) => el("tr", {},
      el("th", { class: "text" }, letters.length > 1 ? "all" : FREQUENCIES[letters]),
      ...columns.map(([title, test], i) => el("td", { class: i === 3 ? "better" : i === 4 ? "worse" : "" }, sum(letters, test).toLocaleString("en"))))))));
}

let confused = "";
const confusionOrder = { column: 2, descending: true };

function drawConfusions() {
  const counts = new Map();
  for (const { object, a, b, count } of names()) {
    for (const [run, called] of [["a", a], ["b", b]]) {
      if (called === object) continue;
      const key = `${object},${called}`;
      if (!counts.has(key)) counts.set(key, { object, called, a: 0, b: 0 });
      counts.get(key)[run] += count;
    }
  }
  const all = [...counts.values()];
  if (!confused) confused = all.some((row) => CLASSES.frequency[row.object] === "r") ? "r" : "rcf";
  const rows = all.filter((row) => confused.includes(CLASSES.frequency[row.object]));
  const columns = [
    { title: "object", text: true, value: (row) => CLASSES.name[row.object], cell: (row) => el("td", { class: "text" }, classLink(row.object)) },
    { title: "called", text: true, value: (row) => CLASSES.name[row.called] || "", cell: (row) => el("td", { class: "text" }, classLink(row.called)) },
    numberColumn(isSingle ? "objects" : `objects, ${REPORT.runs[state.a]}`, (row) => row.a),
  ];
  if (!isSingle) columns.push(numberColumn(`objects, ${REPORT.runs[state.b]}`, (row) => row.b));
  const filter = el("select", { onchange: (event) => { confused = event.target.value; drawConfusions(); } });
  fill(filter, [["rcf", "all"], ...Object.entries(FREQUENCIES)], confused);
  const name = (i) => (i < 0 ? "nothing" : CLASSES.name[i]);
  sortableTable(byId("confusions"), columns, rows, (row) => `${name(row.object)} ${name(row.called)}`.replaceAll("_", " "),
    confusionOrder, [el("label", {}, "objects of ", filter, " classes")]);
}

const ERRORS = ["classification", "localisation", "both", "duplicate", "background", "missed"];

function drawErrorCounts() {
  const chosen = isSingle ? [state.a] : [state.a, state.b];
  byId("error-counts").replaceChildren(el("table", {},
    el("thead", {}, el("tr", {}, el("th", { class: "text" }, "classes"), el("th", { class: "text" }, "run"), el("th", {}, "AP50"),
      ...ERRORS.map((name) => el("th", {}, name)))),
    el("tbody", {}, ...["rcf", "r", "c", "f"].flatMap((letters) => chosen.map((run, i) => {
      const found = REPORT.errors[run][letters];
      return el("tr", {}, el("th", { class: "text" }, i ? "" : letters.length > 1 ? "all" : FREQUENCIES[letters]),
        el("td", { class: "text" }, REPORT.runs[run]), el("td", {}, number(found.ap50)),
        ...found.counts.map((count, kind) => el("td", {}, el("button", { class: "link", type: "button",
          onclick: () => openGallery({ frequency: letters.length > 1 ? "" : letters, error: kind, run }) }, count.toLocaleString("en")))));
    })))));
}

parts.push(drawClasses, drawRenamed, drawConfusions, drawErrorCounts);
