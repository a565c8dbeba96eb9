// Elements of the page. What they show is set as text, never as markup: names, labels and reasons come
// from devices.

export const byId = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, item] of Object.entries(attributes)) made.setAttribute(key, item);
  made.append(...children);
  return made;
}

export function setText(id, text) {
  if (byId(id).textContent !== text) byId(id).textContent = text;
}

const drawn = new Map();

/** Draw only when `facts` are not those of the last time: a selection or a note stays as it was. */
export function whenChanged(id, facts, drawIt) {
  const text = JSON.stringify(facts);
  if (drawn.get(id) === text) return;
  drawn.set(id, text);
  byId(id).replaceChildren(...drawIt());
}

export function svg(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, item] of Object.entries(attributes)) made.setAttribute(key, item);
  if (text !== undefined) made.textContent = text;
  return made;
}

// ---- tables ----

const FEW_ROWS = 15;
const unfolded = new Set();

/** A table; a cell is a text or {text, class, link, title, note, bar}. The first column heads its row. */
export function drawTable(id, columns, rows, none) {
  const redraw = () => drawTable(id, columns, rows, none);
  const all = unfolded.has(id);
  const shown = all ? rows : rows.slice(0, FEW_ROWS);
  whenChanged(id, [columns, shown, rows.length, all], () => {
    if (rows.length === 0) return [element("p", { class: "none" }, none)];
    const head = element("tr", {}, ...columns.map((column) => cell("th", { ...column, scope: "col" })));
    const body = shown.map((row) => {
      const made = element("tr", {}, ...row.cells.map((item, place) => tableCell(item, columns[place], place)));
      if (row.current) made.setAttribute("aria-current", "true");
      return made;
    });
    const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
    const heading = byId(id).parentElement.getAttribute("aria-labelledby");
    table.setAttribute("aria-labelledby", heading);
    const scroll = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-labelledby": heading }, table);
    return rows.length > FEW_ROWS ? [scroll, unfold(id, all, rows.length, redraw)] : [scroll];
  });
}

function tableCell(item, column, place) {
  const facts = typeof item === "object" ? item : { text: item };
  const classes = [column.class, facts.class].filter(Boolean).join(" ");
  return place === 0 ? cell("th", { scope: "row", ...facts, class: classes }) : cell("td", { ...facts, class: classes });
}

function cell(name, { text, class: classes, scope, link, title, note, bar }) {
  const made = element(name, scope ? { scope } : {}, link ? element("a", { href: link }, text) : text);
  made.className = classes ?? "";
  if (title) made.setAttribute("title", title);
  if (note) made.append(element("small", {}, note));
  if (bar) made.append(stacked(bar));
  return made;
}

/** Parts of a whole as a bar. */
function stacked(parts) {
  const made = svg("svg", { class: "bar", viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" });
  const whole = parts.reduce((sum, part) => sum + part, 0) || 1;
  let x = 0;
  for (const [place, part] of parts.entries()) {
    made.append(svg("rect", { class: `part-${place}`, x, y: 0, width: part / whole, height: 1 }));
    x += part / whole;
  }
  return made;
}

function unfold(id, all, count, redraw) {
  const button = element("button", { class: "more", type: "button" }, all ? "Show fewer" : `Show all ${count}`);
  button.addEventListener("click", () => {
    if (!unfolded.delete(id)) unfolded.add(id);
    redraw();
  });
  return button;
}

/** A cell, or the head of a column, whose text is a number. */
export const number = (text) => ({ text, class: "number" });
