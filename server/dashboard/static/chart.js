// A chart of lines over the rounds, with a note that follows the pointer or the arrow keys.

import { byId, element, svg, whenChanged } from "./elements.js";
import { last } from "./known.js";
import { isShare, title, value } from "./text.js";

const HEIGHT = 220;
const EDGE = { left: 54, right: 10, top: 10, bottom: 26 };

/** Round numbers that divide [low, high] into about `count` parts. */
function ticks(low, high, count, smallest = 0) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(smallest, power * [1, 2, 5, 10].find((factor) => power * factor >= rough));
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) found.push(at * step);
  return found;
}

export function drawChart(id, metric, allSeries, target) {
  const series = allSeries.filter((item) => item.points.length > 0);
  const { paddingLeft, paddingRight } = getComputedStyle(byId(id));
  const width = Math.max(200, byId(id).clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight));
  whenChanged(id, [metric, series, target, width], () => {
    const keys = series.map((item) => element("span", { class: `key ${item.key}` }, item.name));
    if (target !== null) keys.push(element("span", { class: "key target" }, `target ${value(metric, target)}`));
    const caption = element("figcaption", {}, element("strong", {}, title(metric)), ...keys);
    if (series.length === 0) {
      return [caption, element("p", { class: "none" }, "Nothing measured yet.")];
    }
    return [caption, ...plot(metric, series, target, width)];
  });
}

function plot(metric, series, target, width) {
  const points = series.flatMap((item) => item.points);
  const lastRound = Math.max(2, ...points.map((point) => point[0]));
  const values = points.map((point) => point[1]).concat(target ?? []);
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = (high - low) * 0.08 || Math.abs(high) * 0.1 || 0.1;
  [low, high] = [low >= 0 ? Math.max(0, low - margin) : low - margin, high + margin];
  if (isShare(metric)) high = Math.min(high, 1);
  const x = (round) => EDGE.left + ((round - 1) / (lastRound - 1)) * (width - EDGE.left - EDGE.right);
  const y = (number) => EDGE.top + ((high - number) / (high - low)) * (HEIGHT - EDGE.top - EDGE.bottom);

  const picture = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", tabindex: 0 });
  const newest = series.map((item) => `${item.name} ${value(metric, last(item.points)[1])} after round ${last(item.points)[0]}`);
  picture.setAttribute("aria-label", `${title(metric)} by round: ${newest.join("; ")}`);
  const marks = ticks(low, high, 6);
  const share = isShare(metric) ? 100 : 1;
  const decimals = Math.max(...marks.map((at) => String(Number((at * share).toPrecision(6))).split(".")[1]?.length ?? 0));
  for (const at of marks) {
    picture.append(
      svg("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(at), y2: y(at) }),
      svg("text", { x: EDGE.left - 8, y: y(at) + 4, "text-anchor": "end" }, (at * share).toFixed(decimals) + (share === 100 ? " %" : "")),
    );
  }
  const floor = HEIGHT - EDGE.bottom;
  picture.append(svg("line", { class: "axis", x1: EDGE.left, x2: width - EDGE.right, y1: floor, y2: floor }));
  for (const at of ticks(1, lastRound, Math.max(2, width / 90), 1)) {
    picture.append(svg("text", { x: x(at), y: HEIGHT - 8, "text-anchor": "middle" }, String(at)));
  }
  picture.append(svg("text", { x: EDGE.left - 8, y: HEIGHT - 8, "text-anchor": "end" }, "round"));
  if (target !== null) {
    picture.append(svg("line", { class: "target", x1: EDGE.left, x2: width - EDGE.right, y1: y(target), y2: y(target) }));
  }
  for (const item of series) {
    const path = item.points.map(([round, number], index) => `${index ? "L" : "M"}${x(round).toFixed(1)} ${y(number).toFixed(1)}`);
    picture.append(svg("path", { class: `line ${item.key}`, d: path.join("") }));
    if (item.points.length === 1) {
      picture.append(svg("circle", { class: item.key, cx: x(item.points[0][0]), cy: y(item.points[0][1]), r: 3 }));
    }
  }
  return [picture, ...cursor(picture, metric, series, width, { x, y })];
}

/** A line and a note that follow the pointer, or the arrow keys, from round to round. */
function cursor(picture, metric, series, width, { x, y }) {
  const rounds = [...new Set(series.flatMap((item) => item.points.map((point) => point[0])))].sort((a, b) => a - b);
  const line = svg("line", { class: "cursor", y1: EDGE.top, y2: HEIGHT - EDGE.bottom, visibility: "hidden" });
  const dots = svg("g", {});
  const note = element("div", { class: "tip", hidden: "" });
  picture.append(line, dots);
  let index = rounds.length - 1;

  const hide = () => {
    note.hidden = true;
    line.setAttribute("visibility", "hidden");
    dots.replaceChildren();
  };
  const show = () => {
    const round = rounds[index];
    const here = series
      .map((item) => ({ ...item, number: item.points.find((point) => point[0] === round)?.[1] }))
      .filter((item) => item.number !== undefined);
    line.setAttribute("x1", x(round));
    line.setAttribute("x2", x(round));
    line.setAttribute("visibility", "visible");
    dots.replaceChildren(...here.map((item) => svg("circle", { class: item.key, cx: x(round), cy: y(item.number), r: 4 })));
    note.replaceChildren(
      element("strong", {}, `Round ${round}`),
      ...here.map((item) => element("div", {}, `${value(metric, item.number)}  ${item.name}`)),
    );
    note.hidden = false;
    const left = x(round) + 26 + note.offsetWidth > width ? x(round) - note.offsetWidth + 6 : x(round) + 30;
    note.style.transform = `translate(${Math.max(4, left)}px, ${picture.parentElement.clientHeight - HEIGHT}px)`;
  };
  picture.addEventListener("pointermove", (event) => {
    const at = event.clientX - picture.getBoundingClientRect().left;
    const distance = (round) => Math.abs(x(round) - at);
    index = rounds.reduce((best, round, place) => (distance(round) < distance(rounds[best]) ? place : best), 0);
    show();
  });
  picture.addEventListener("pointerleave", hide);
  picture.addEventListener("blur", hide);
  picture.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step === undefined) return;
    if (!note.hidden) index = Math.min(Math.max(index + step, 0), rounds.length - 1);
    show();
    event.preventDefault();
  });
  return [note];
}
