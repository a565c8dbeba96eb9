// Keeps what is known up to date: the server tells what has happened, and what that has changed is
// read again, twice a second at most.

import { OF_A_RUN, known, last, load } from "./known.js";

/** What has changed after an event of this kind; the log always has. */
const CHANGES = {
  listening: ["status", "runs", "clients", ...OF_A_RUN],
  run_submitted: ["runs"],
  run_started: ["status", "runs"],
  run_resumed: ["status", "runs"],
  run_ended: ["status", "runs", ...OF_A_RUN],
  tasks_committed: ["status", "clients", "rounds"],
  update_stored: ["status", "clients", "rounds"],
  update_damaged: ["status", "clients", "rounds"],
  aggregation_started: ["status"],
  round_committed: ["status", "runs", "rounds"],
  round_failed: ["status", "runs", "rounds"],
  task_declined: ["status"],
  evaluation_done: ["status", "runs", "evaluations"],
  evaluation_failed: ["status"],
  client_joined: ["status", "clients"],
  client_left: ["status", "clients"],
  client_suspected: ["status", "clients"],
  token_created: [],
  token_revoked: [],
  member_enrolled: [],
  member_renewed: [],
  member_revoked: ["status", "clients"],
  access_created: [],
  access_revoked: [],
  call_refused: ["status", "clients"],
  update_refused: ["status", "clients", "refusals"],
  client_left_out: ["status", "clients"],
};
const EVERYTHING = [...CHANGES.listening, "log", "audit"];
const PAUSE_MS = 500;
const PAUSE_AFTER_TROUBLE_MS = 3000;
/** For what has no event of its own: the steps of devices, and how long they are silent. */
const GLANCE_MS = 3000;
const LOST = "The connection to the server is lost. Trying again …";

/** From now on call `draw` whenever more is known, and `tell` with what keeps us from knowing, or "". */
export function keepUp(draw, tell) {
  page = { draw, tell };
  setInterval(() => document.hidden || refresh("status", "clients", "audit"), GLANCE_MS);
  document.addEventListener("visibilitychange", () => document.hidden || refresh(...EVERYTHING));
  // The address names the run to show.
  addEventListener("hashchange", () => refresh("status"));
  refresh(...EVERYTHING);
  listen();
}

let page;
const stale = new Set();
let reading = false;
let nextReading = 0;
let lastReading = -PAUSE_MS;

function refresh(...names) {
  for (const name of names) stale.add(name);
  // Events come in bursts: what follows the first one within a moment is read with it.
  if (!reading && !nextReading) readAfter(Math.max(50, lastReading + PAUSE_MS - performance.now()));
}

function readAfter(milliseconds) {
  nextReading = setTimeout(readStale, milliseconds);
}

async function readStale() {
  nextReading = 0;
  lastReading = performance.now();
  reading = true;
  const names = [...stale];
  stale.clear();
  let pause = PAUSE_MS;
  let complete = false;
  try {
    const first = names.filter((name) => name === "status" || name === "runs");
    await Promise.all(first.map((name) => load[name]()));
    if (chooseRun()) names.push(...OF_A_RUN, "log");
    const rest = new Set(names.filter((name) => !first.includes(name)));
    if (known.runId === null) for (const name of OF_A_RUN) rest.delete(name);
    await Promise.all([...rest].map((name) => load[name]()));
    noteTrouble("reading", "");
    complete = true;
  } catch (error) {
    names.forEach((name) => stale.add(name));
    noteTrouble("reading", error instanceof TypeError || error.name === "TimeoutError" ? LOST : error.message);
    pause = PAUSE_AFTER_TROUBLE_MS;
  }
  reading = false;
  if (stale.size) readAfter(pause);
  if (complete) page.draw();
}

/** The run of the address, else the one that is running, else the newest. Returns whether it changed. */
function chooseRun() {
  const asked = Number(/^#run=(\d+)$/.exec(location.hash)?.[1]);
  const wanted = known.runs.some((item) => item.run_id === asked)
    ? asked
    : known.status.run_id ?? last(known.runs)?.run_id ?? null;
  if (wanted === known.runId) return false;
  known.runId = wanted;
  for (const name of [...OF_A_RUN, "log"]) known[name] = [];
  return true;
}

const troubles = new Map();

function noteTrouble(source, text) {
  troubles.set(source, text);
  page.tell([...troubles.values()].find(Boolean) ?? "");
}

function listen() {
  const source = new EventSource("api/events");
  for (const [kind, names] of Object.entries(CHANGES)) {
    source.addEventListener(kind, () => refresh("log", ...names));
  }
  source.onopen = () => noteTrouble("stream", "");
  source.onerror = () => {
    noteTrouble("stream", LOST);
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, PAUSE_AFTER_TROUBLE_MS);
  };
}
