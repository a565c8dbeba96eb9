// The page, section by section.

import { drawAudit } from "./audit.js";
import { drawChart } from "./chart.js";
import { drawClients } from "./clients.js";
import { byId, drawTable, element, number, setText, whenChanged } from "./elements.js";
import { known, last, now, run } from "./known.js";
import { keepUp } from "./live.js";
import { drawRefusals } from "./refusals.js";
import { logIn } from "./session.js";
import { bytes, clock, duration, title, value } from "./text.js";

function draw() {
  const shown = run();
  byId("empty").hidden = known.runs.length > 0;
  for (const id of ["run", "rounds", "charts"]) byId(id).hidden = !shown;
  byId("runs").hidden = known.runs.length === 0;
  if (shown) {
    drawRun(shown);
    drawCharts(shown);
    drawModels(shown);
    drawRounds(shown);
  }
  drawClients();
  drawRefusals();
  drawRuns();
  drawAudit();
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
  folding: "averaging the evaluations",
  resting: "resting",
  judging: "catching up with evaluations",
  closing: "finishing",
};

function drawRun(shown) {
  const { spec } = shown;
  const open = known.status.run_id === known.runId;
  const round = open ? known.status.round_number : shown.round_number;
  setText("run-name", spec.name);
  setText("run-state", shown.state);
  byId("run-state").className = `badge ${shown.state}`;
  setText("run-about", `run ${known.runId} · ${spec.method.name} · ${spec.app?.name ?? spec.model.name}`);
  setText("run-round", `Round ${round} of ${spec.stop.rounds}`);
  let phase = shown.reason;
  if (shown.state === "queued") phase = "waits for its turn";
  if (open) {
    phase = PHASES[known.status.phase] ?? "";
  }
  setText("run-phase", phase && `· ${phase}`);
  drawWait(open ? known.status.wait : { text: "" });
  byId("run-progress").max = spec.stop.rounds;
  byId("run-progress").value = shown.round_number;
  byId("run-model").hidden = shown.ended_at === null || shown.round_number === 0;
  byId("run-model").href = `api/runs/${known.runId}/model`;
  drawFacts(shown);
}

/** What the run waits for: who is missing, what each is doing, until when, and what comes then. */
function drawWait({ text, until, then }) {
  byId("run-wait").hidden = !text;
  setText("run-wait-for", text && `Waiting for ${text}${until === null ? "" : `, until ${clock(until)}`}`);
  setText("run-wait-then", then ?? "");
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
  const ofRounds = (name) =>
    committed()
      .filter((item) => Number.isFinite(item.metrics[name]))
      .map((item) => [item.round_number, item.metrics[name]]);
  const inTraining = { key: "training", name: "in training", points: ofRounds("loss") };
  drawChart("metric-chart", metric, metric === "loss" ? [...both("loss"), inTraining] : both(metric), shown.spec.stop.target);
  byId("loss-chart").hidden = metric === "loss";
  if (metric !== "loss") drawChart("loss-chart", "loss", [...both("loss"), inTraining], null);
  const kept = { key: "server", name: "of the weights kept", points: ofRounds("density") };
  byId("density-chart").hidden = kept.points.length === 0;
  if (kept.points.length > 0) drawChart("density-chart", "density", [kept], null);
}

// ---- tables and the log ----

/** The round whose models a run has left. */
const saved = (shown) => shown.best_round ?? shown.round_number;

/** The global model beside the others of its state: of the round that the files are of, else the newest. */
function drawModels(shown) {
  const { metric } = shown.spec.evaluation;
  // What clients measure is of what each of them holds.
  const measured = known.evaluations.filter((item) => item.where === "server");
  const files = known.models.length > 0;
  const about = files ? measured.find((item) => item.round_number === saved(shown)) : last(measured);
  const found = { global: about?.metrics, ...about?.others };
  const names = files ? known.models : Object.keys(found);
  byId("models").hidden = names.length < 2;
  setText("models-about", `after round ${about?.round_number ?? saved(shown)}`);
  const metrics = [...new Set([metric, "loss"])];
  const rows = names.map((name) => ({
    cells: [
      { text: name, class: "text" },
      ...metrics.map((each) => value(each, found[name]?.[each])),
      ...(files ? [{ text: "Download", link: `api/runs/${known.runId}/model?name=${encodeURIComponent(name)}` }] : []),
    ],
  }));
  const columns = [{ text: "Model" }, ...metrics.map((each) => number(title(each))), ...(files ? [{ text: "File" }] : [])];
  drawTable("models-table", columns, rows, "");
}

/** What metrics of a round are that no device has measured in training. */
const OF_ROUNDS = { density: "Density", pace_seconds: "Pace, s" };

function drawRounds(shown) {
  const { metric } = shown.spec.evaluation;
  const results = new Map(judging(shown).map((item) => [item.round_number, item.metrics[metric]]));
  const others = Object.keys(last(committed())?.metrics ?? {}).slice(0, 4);
  const names = ["Updates", title(metric), ...others.map((name) => OF_ROUNDS[name] ?? `Training ${name}`), "Sent", "Received", "Seconds"];
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

function drawRuns() {
  const rows = [...known.runs].reverse().map((item) => ({
    current: item.run_id === known.runId,
    cells: [
      { text: `${item.run_id} ${item.spec.name}`, class: "text", link: `#run=${item.run_id}` },
      { text: item.state, class: `state ${item.state}` },
      `${item.round_number} of ${item.spec.stop.rounds}`,
      value(item.spec.evaluation.metric, item.best_value),
    ],
  }));
  drawTable("runs-table", [{ text: "Run" }, { text: "State" }, number("Rounds"), number("Best")], rows, "");
}

/** Kinds of lines that stand out. */
const BAD = new Set(["round_failed", "evaluation_failed", "call_refused", "update_refused"]);
const DOUBTFUL = new Set(["client_suspected", "client_left", "client_left_out"]);

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

function tell(trouble) {
  setText("lost", trouble);
  byId("lost").hidden = !trouble;
  setText("link", trouble ? "not connected" : "live");
  byId("link").className = trouble ? "link" : "link live";
}

addEventListener("resize", () => known.status && draw());
logIn(() => keepUp(draw, tell));
