// What the page knows of the server, and how each part of it is read from the API.

import { session } from "./session.js";

export const known = {
  status: null, runs: [], clients: [], log: [],
  /** The run that is shown; null while there is none. */
  runId: null,
  rounds: [], evaluations: [],
  /** Who did what; stays empty for viewers. */
  audit: [],
  /** Updates of the run that were refused. */
  refusals: [],
  /** Names of the models that the run has left; none before it has ended. */
  models: [],
};
/** The server's clock minus this device's, in seconds. */
let clockOffset = 0;

const PAGE = 1000;
const LOG_LINES = 200;
const REFUSALS = 200;
const AUDIT_LINES = 200;

async function get(path) {
  const answer = await fetch(`api/${path}`, { signal: AbortSignal.timeout(10_000) });
  // The session has ended: the page asks for a token again.
  if (answer.status === 401) location.reload();
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    throw new Error(problem.message ?? `the server answered ${answer.status}`);
  }
  const date = Date.parse(answer.headers.get("date"));
  // The header has whole seconds: less than that is no difference.
  if (Math.abs(date - Date.now()) > 1500) clockOffset = (date - Date.now()) / 1000;
  return answer.json();
}

export const now = () => Date.now() / 1000 + clockOffset;
export const run = () => known.runs.find((item) => item.run_id === known.runId);
export const last = (items) => items[items.length - 1];

export const load = {
  async status() { known.status = await get("status"); },
  async runs() { known.runs = await get("runs"); },
  async clients() { known.clients = await get("clients"); },
  async rounds() {
    // What is over does not change any more: only what comes after it is read again.
    let kept = known.rounds.filter((item) => item.state !== "open");
    for (;;) {
      const after = last(kept)?.round_number ?? 0;
      const page = await get(`runs/${known.runId}/rounds?after=${after}&limit=${PAGE}`);
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
    const fresh = await get(`runs/${known.runId}/evaluations?after=${after}`);
    known.evaluations = known.evaluations.filter((item) => item.round_number <= after).concat(fresh);
  },
  async models() {
    known.models = run().ended_at === null ? [] : await get(`runs/${known.runId}/models`);
  },
  async refusals() {
    const after = last(known.refusals)?.refusal_id ?? 0;
    const fresh = await get(`runs/${known.runId}/refusals?newest=true&limit=${REFUSALS}&after=${after}`);
    known.refusals = known.refusals.concat(fresh).slice(-REFUSALS);
  },
  async audit() {
    if (session.role !== "operator") return;
    const after = last(known.audit)?.audit_id ?? 0;
    const fresh = await get(`audit?newest=true&limit=${AUDIT_LINES}&after=${after}`);
    known.audit = known.audit.concat(fresh).slice(-AUDIT_LINES);
  },
  async log() {
    // The newest run shares its time with what happens to clients; an old one has only its own lines.
    const newest = known.runId === null || known.runId === (known.status.run_id ?? last(known.runs).run_id);
    const path = newest ? "log" : `runs/${known.runId}/log`;
    const after = last(known.log)?.event_id ?? 0;
    const fresh = await get(`${path}?newest=true&limit=${LOG_LINES}&after=${after}`);
    known.log = known.log.concat(fresh).slice(-LOG_LINES);
  },
};
export const OF_A_RUN = ["rounds", "evaluations", "models", "refusals"];
