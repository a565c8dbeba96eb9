// The page: reads the API, listens to its events, draws. Whatever it shows is set as text, never as
// markup: names, labels and reasons come from devices.

// ---- what is known ----

const known = { status: null, runs: [], clients: [], rounds: [], evaluations: [], log: [] };
/** The run that is shown; null while there is none. */
let runId = null;
/** Server's clock minus this device's, in seconds. */
let clockOffset = 0;

const PAGE = 1000;
const LOG_LINES = 200;

/** What has changed after an event of this kind; the log always has. */
const CHANGES = {
  listening: ["status", "runs", "clients", "rounds", "evaluations"],
  run_submitted: ["runs"],
  run_started: ["status", "runs"],
  run_resumed: ["status", "runs"],
  run_ended: ["status", "runs", "rounds", "evaluations"],
  tasks_committed: ["status", "clients", "rounds"],
  update_stored: ["status", "clients", "rounds"],
  aggregation_started: ["status"],
  round_committed: ["status", "runs", "rounds"],
  round_failed: ["status", "runs", "rounds"],
  evaluation_done: ["status", "runs", "evaluations"],
  evaluation_failed: ["status"],
  client_joined: ["status", "clients"],
  client_left: ["status", "clients"],
  client_suspected: ["status", "clients"],
  call_refused: ["status", "clients"],
};
const BAD = new Set(["round_failed", "evaluation_failed", "call_refused"]);
const DOUBTFUL = new Set(["client_suspected", "client_left"]);

// ---- reading the API ----

async function get(path) {
  const answer = await fetch(`api/${path}`, { signal: AbortSignal.timeout(10_000) });
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    throw new Error(problem.message ?? `the server answered ${answer.status}`);
  }
  const date = Date.parse(answer.headers.get("date"));
  // The header has whole seconds: less than that is no difference.
  if (Math.abs(date - Date.now()) > 1500) clockOffset = (date - Date.now()) / 1000;
  return answer.json();
}

const now = () => Date.now() / 1000 + clockOffset;
const run = () => known.runs.find((item) => item.run_id === runId);
const last = (items) => items[items.length - 1];

const load = {
  async status() { known.status = await get("status"); },
  async runs() { known.runs = await get("runs"); },
  async clients() { known.clients = await get("clients"); },
  async rounds() {
    // What is over does not change any more: only what comes after it is read again.
    let kept = known.rounds.filter((item) => item.state !== "open");
    for (;;) {
      const after = last(kept)?.round_number ?? 0;
      const page = await get(`runs/${runId}/rounds?after=${after}&limit=${PAGE}`);
      kept = kept.concat(page);
      if (page.length < PAGE) break;
    }
    known.rounds = kept;
  },
  async evaluations() {
    const { evaluation } = run().spec;
    const newest = (where) => last(known.evaluations.filter((item) => item.where === where))?.round_number ?? 0;
    const after = Math.min(
      evaluation.data === null ? Infinity : newest("server"),
      evaluation.on_clients ? newest("clients") : Infinity,
    );
    if (after === Infinity) return;
    const fresh = await get(`runs/${runId}/evaluations?after=${after}`);
    known.evaluations = known.evaluations.filter((item) => item.round_number <= after).concat(fresh);
  },
  async log() {
    // The newest run shares its time with what happens to clients; an old one has only its own lines.
    const newest = runId === null || runId === (known.status.run_id ?? last(known.runs).run_id);
    const path = newest ? "log" : `runs/${runId}/log`;
    const after = last(known.log)?.event_id ?? 0;
    const fresh = await get(`${path}?newest=true&limit=${LOG_LINES}&after=${after}`);
    known.log = known.log.concat(fresh).slice(-LOG_LINES);
  },
};
const OF_A_RUN = ["rounds", "evaluations"];

// ---- keeping up: what is stale is read again, a few times a second at most ----

const stale = new Set();
let reading = false;
let nextReading = 0;

function refresh(...names) {
  for (const name of names) stale.add(name);
  if (reading || nextReading) return;
  nextReading = setTimeout(readStale, 250);
}

async function readStale() {
  nextReading = 0;
  reading = true;
  const names = [...stale];
  stale.clear();
  let wait = 0;
  try {
    const first = names.filter((name) => name === "status" || name === "runs");
    await Promise.all(first.map((name) => load[name]()));
    if (chooseRun()) names.push(...OF_A_RUN, "log");
    const rest = new Set(names.filter((name) => !first.includes(name)));
    if (runId === null) for (const name of OF_A_RUN) rest.delete(name);
    await Promise.all([...rest].map((name) => load[name]()));
    tellLost("reading", "");
    draw();
  } catch (error) {
    names.forEach((name) => stale.add(name));
    tellLost("reading", error instanceof TypeError || error.name === "TimeoutError" ? LOST : error.message);
    wait = 3000;
  }
  reading = false;
  if (stale.size && !nextReading) nextReading = setTimeout(readStale, wait || 250);
}

/** The run of the address, else the one that is running, else the newest. Returns whether it changed. */
function chooseRun() {
  const asked = Number(/^#run=(\d+)$/.exec(location.hash)?.[1]);
  const wanted = known.runs.some((item) => item.run_id === asked)
    ? asked
    : known.status.run_id ?? last(known.runs)?.run_id ?? null;
  if (wanted === runId) return false;
  runId = wanted;
  for (const name of [...OF_A_RUN, "log"]) known[name] = [];
  return true;
}

const LOST = "The connection to the server is lost. Trying again …";
const troubles = new Map();

function tellLost(source, text) {
  troubles.set(source, text);
  const trouble = [...troubles.values()].find(Boolean) ?? "";
  const note = byId("lost");
  if (note.textContent !== trouble) note.textContent = trouble;
  note.hidden = !trouble;
  byId("link").className = trouble ? "link" : "link live";
  byId("link").textContent = trouble ? "not connected" : "live";
}

function listen() {
  const source = new EventSource("api/events");
  for (const [kind, names] of Object.entries(CHANGES)) {
    source.addEventListener(kind, () => refresh("log", ...names));
  }
  source.onopen = () => tellLost("stream", "");
  source.onerror = () => {
    tellLost("stream", LOST);
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  };
}

// ---- numbers as people read them ----

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; count >= 1000 && unit < units.length - 1; unit += 1) count /= 1000;
  return `${count.toFixed(unit === 0 || count >= 100 ? 0 : 1)} ${units[unit]}`;
}

function duration(seconds) {
  if (seconds < 10) return `${Math.max(seconds, 0).toFixed(seconds < 1 ? 2 : 1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.round(minutes / 60 / 24)} days`;
}

function value(metric, number) {
  if (number === null || number === undefined) return "–";
  if (/accuracy/.test(metric)) return `${(number * 100).toFixed(1)} %`;
  if (number !== 0 && (Math.abs(number) >= 1e5 || Math.abs(number) < 1e-3)) return number.toExponential(2);
  return String(Number(number.toPrecision(4)));
}

function clock(at) {
  const date = new Date(at * 1000);
  const time = date.toLocaleTimeString([], { hour12: false });
  return now() - at < 20 * 3600 ? time : `${date.toLocaleDateString()} ${time}`;
}

const title = (metric) => metric.charAt(0).toUpperCase() + metric.slice(1).replaceAll("_", " ");

// ---- drawing ----

const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, item] of Object.entries(attributes)) made.setAttribute(key, item);
  made.append(...children);
  return made;
}

function setText(id, text) {
  if (byId(id).textContent !== text) byId(id).textContent = text;
}

/** Draw only when `facts` are not those of the last time: a selection or a tooltip stays as it was. */
const drawn = new Map();
function whenChanged(id, facts, drawIt) {
  const text = JSON.stringify(facts);
  if (drawn.get(id) === text) return;
  drawn.set(id, text);
  byId(id).replaceChildren(...drawIt());
}

function draw() {
  const shown = run();
  byId("empty").hidden = known.runs.length > 0;
  for (const id of ["run", "rounds", "charts"]) byId(id).hidden = !shown;
  byId("runs").hidden = known.runs.length === 0;
  if (shown) {
    drawRun(shown);
    drawCharts(shown);
    drawRounds(shown);
  }
  drawClients();
  drawRuns();
  drawLog();
  const progress = shown && shown.state === "running" ? `${shown.round_number}/${shown.spec.stop.rounds} ` : "";
  document.title = `${progress}${shown ? `${shown.spec.name} · ` : ""}Coppice`;
}

const PHASES = {
  opening: "opening the round",
  gathering: "gathering devices",
  planning: "planning tasks",
  reporting: "devices are training",
  aggregating: "folding the updates",
  evaluating: "devices are evaluating",
  closing: "finishing",
};

function drawRun(shown) {
  const { spec } = shown;
  const open = known.status.run_id === runId;
  const round = open ? known.status.round_number : shown.round_number;
  setText("run-name", spec.name);
  setText("run-state", shown.state);
  byId("run-state").className = `badge ${shown.state}`;
  setText("run-about", `run ${runId} · ${spec.method.name} · ${spec.app?.name ?? spec.model.name}`);
  setText("run-round", `Round ${round} of ${spec.stop.rounds}`);
  let phase = shown.reason;
  if (shown.state === "queued") phase = "waits for its turn";
  if (open) {
    const waiting = known.status.waiting_for;
    phase = (PHASES[known.status.phase] ?? "") + (waiting && `; waiting for ${waiting}`);
  }
  setText("run-phase", phase && `· ${phase}`);
  byId("run-progress").max = spec.stop.rounds;
  byId("run-progress").value = shown.round_number;
  byId("run-model").hidden = shown.ended_at === null || shown.round_number === 0;
  byId("run-model").href = `api/runs/${runId}/model`;
  drawFacts(shown);
}

function drawFacts(shown) {
  const { metric } = shown.spec.evaluation;
  const sum = (key) => known.rounds.reduce((total, item) => total + item[key], 0);
  const newest = last(judging(shown));
  const { target } = shown.spec.stop;
  const facts = [
    [title(metric), value(metric, newest?.metrics[metric]), newest ? `after round ${newest.round_number}` : "not evaluated yet"],
    ["Best", value(metric, shown.best_value), shown.best_round === null ? "" : `in round ${shown.best_round}`],
    ["Training loss", value("loss", last(committed())?.metrics.loss), ""],
    ["Updates", String(sum("num_updates")), `${shown.spec.cohort.size} a round`],
    ["Sent", bytes(sum("bytes_down")), "to devices"],
    ["Received", bytes(sum("bytes_up")), "from devices"],
    ["Time", shown.started_at === null ? "–" : duration((shown.ended_at ?? now()) - shown.started_at), ""],
  ];
  if (target !== null) facts.splice(2, 0, ["Target", value(metric, target), ""]);
  whenChanged("run-facts", facts, () =>
    facts.map(([name, number, about]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, number, element("small", {}, about))),
    ),
  );
}

const committed = () => known.rounds.filter((item) => item.state === "committed");

/** The evaluations that decide: the server's where there is a held-out set, else the clients'. */
function judging(shown) {
  const where = shown.spec.evaluation.data === null ? "clients" : "server";
  return known.evaluations.filter((item) => item.where === where);
}

function drawCharts(shown) {
  const { metric } = shown.spec.evaluation;
  const measured = (where, name) =>
    known.evaluations
      .filter((item) => item.where === where && Number.isFinite(item.metrics[name]))
      .map((item) => [item.round_number, item.metrics[name]]);
  const both = (name) => [
    { key: "server", name: "server's held-out set", points: measured("server", name) },
    { key: "clients", name: "clients' held-out parts", points: measured("clients", name) },
  ];
  const training = committed()
    .filter((item) => Number.isFinite(item.metrics.loss))
    .map((item) => [item.round_number, item.metrics.loss]);
  const inTraining = { key: "training", name: "in training", points: training };
  drawChart("metric-chart", metric, metric === "loss" ? [...both("loss"), inTraining] : both(metric), shown.spec.stop.target);
  byId("loss-chart").hidden = metric === "loss";
  if (metric !== "loss") drawChart("loss-chart", "loss", [...both("loss"), inTraining], null);
}

// ---- charts ----

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

function svg(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, item] of Object.entries(attributes)) made.setAttribute(key, item);
  if (text !== undefined) made.textContent = text;
  return made;
}

function drawChart(id, metric, allSeries, target) {
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
  if (/accuracy/.test(metric)) high = Math.min(high, 1);
  const x = (round) => EDGE.left + ((round - 1) / (lastRound - 1)) * (width - EDGE.left - EDGE.right);
  const y = (number) => EDGE.top + ((high - number) / (high - low)) * (HEIGHT - EDGE.top - EDGE.bottom);

  const picture = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", tabindex: 0 });
  const newest = series.map((item) => `${item.name} ${value(metric, last(item.points)[1])} after round ${last(item.points)[0]}`);
  picture.setAttribute("aria-label", `${title(metric)} by round: ${newest.join("; ")}`);
  const marks = ticks(low, high, 6);
  const share = /accuracy/.test(metric) ? 100 : 1;
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

// ---- tables ----

const FEW_ROWS = 15;
const unfolded = new Set();

/** A table; a cell is a text or {text, class, link}. The first column heads its row. */
function drawTable(id, columns, rows, none) {
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
    return rows.length > FEW_ROWS ? [scroll, unfold(id, all, rows.length)] : [scroll];
  });
}

function tableCell(item, column, place) {
  const facts = typeof item === "object" ? item : { text: item };
  const classes = [column.class, facts.class].filter(Boolean).join(" ");
  return place === 0 ? cell("th", { scope: "row", ...facts, class: classes }) : cell("td", { ...facts, class: classes });
}

function cell(name, { text, class: classes, scope, link }) {
  const made = element(name, scope ? { scope } : {}, link ? element("a", { href: link }, text) : text);
  made.className = classes ?? "";
  return made;
}

function unfold(id, all, count) {
  const button = element("button", { class: "more", type: "button" }, all ? "Show fewer" : `Show all ${count}`);
  button.addEventListener("click", () => {
    if (!unfolded.delete(id)) unfolded.add(id);
    draw();
  });
  return button;
}

const number = (text) => ({ text, class: "number" });

function drawRounds(shown) {
  const { metric } = shown.spec.evaluation;
  const results = new Map(judging(shown).map((item) => [item.round_number, item.metrics[metric]]));
  const others = [...new Set(known.rounds.flatMap((item) => Object.keys(item.metrics)))].slice(0, 4);
  const names = ["Updates", title(metric), ...others.map((name) => `Training ${name}`), "Sent", "Received", "Seconds"];
  const rows = known.rounds.map((item) => ({
    cells: [
      String(item.round_number),
      { text: item.state, class: `state ${item.state}` },
      String(item.state === "open" ? "" : item.num_updates),
      results.has(item.round_number) ? value(metric, results.get(item.round_number)) : "",
      ...others.map((name) => (name in item.metrics ? value(name, item.metrics[name]) : "")),
      bytes(item.bytes_down),
      bytes(item.bytes_up),
      item.closed_at === null ? "" : (item.closed_at - item.opened_at).toFixed(2),
    ],
  }));
  drawTable("rounds-table", [{ text: "Round" }, { text: "State" }, ...names.map(number)], rows.reverse(), "No round yet.");
}

const PRESENCES = ["working", "idle", "suspect", "lost", "left"];

function drawClients() {
  const order = (client) => PRESENCES.indexOf(client.presence);
  const clients = [...known.clients].sort((a, b) => order(a) - order(b) || a.client_id.localeCompare(b.client_id));
  const counts = PRESENCES.map((presence) => [clients.filter((client) => client.presence === presence).length, presence])
    .filter(([count]) => count > 0)
    .map(([count, presence]) => `${count} ${presence}`);
  const { refusals } = known.status;
  setText("clients-about", [...counts, `${refusals} ${refusals === 1 ? "call" : "calls"} refused since the server started`].join(" · "));
  const columns = [
    { text: "Name" }, { text: "Presence" }, { text: "Labels" },
    number("Steps"), number("Memory in use"), number("Memory allowed"), number("Refused"), number("Last seen"),
  ];
  const rows = clients.map((client) => ({
    cells: [
      { text: client.client_id, class: "text" },
      { text: client.presence + (client.presence === "left" && client.left_reason ? `: ${client.left_reason}` : ""),
        class: `state ${client.presence}` },
      { text: Object.entries(client.labels).map(([key, item]) => `${key}=${item}`).join(", "), class: "text" },
      client.presence === "working" ? String(client.live.steps_done) : "",
      client.live?.resident_bytes ? bytes(client.live.resident_bytes) : "",
      bytes(client.capability.memory_bytes),
      String(client.refusals),
      lastSeen(client),
    ],
  }));
  drawTable("clients-table", columns, rows, "No device has joined yet: fedclient join HOST:PORT --data PATH");
}

function lastSeen(client) {
  if (client.left_at !== null) return clock(client.left_at);
  if (client.live === null) return "before the restart";
  return client.live.seconds_silent < 5 ? "now" : `${duration(client.live.seconds_silent)} ago`;
}

function drawRuns() {
  const rows = [...known.runs].reverse().map((item) => ({
    current: item.run_id === runId,
    cells: [
      { text: `${item.run_id} ${item.spec.name}`, class: "text", link: `#run=${item.run_id}` },
      { text: item.state, class: `state ${item.state}` },
      `${item.round_number} of ${item.spec.stop.rounds}`,
      value(item.spec.evaluation.metric, item.best_value),
    ],
  }));
  drawTable("runs-table", [{ text: "Run" }, { text: "State" }, number("Rounds"), number("Best")], rows, "");
}

function drawLog() {
  whenChanged("log", known.log.map((item) => item.event_id), () =>
    known.log.length === 0
      ? [element("li", { class: "none" }, "Nothing has happened yet.")]
      : [...known.log].reverse().map((item) =>
          element(
            "li",
            { class: BAD.has(item.kind) ? "bad" : DOUBTFUL.has(item.kind) ? "warn" : "" },
            element("time", { datetime: new Date(item.at * 1000).toISOString() }, clock(item.at)),
            element("span", {}, item.text),
          ),
        ),
  );
}

// ---- life ----

const EVERYTHING = [...CHANGES.listening, "log"];
// What has no event of its own: the steps of devices, and how long they are silent.
setInterval(() => document.hidden || refresh("status", "clients"), 3000);
document.addEventListener("visibilitychange", () => document.hidden || refresh(...EVERYTHING));
addEventListener("hashchange", () => refresh("status"));
addEventListener("resize", () => known.status && draw());
refresh(...EVERYTHING);
listen();
