// The table of devices: who is there, what each may use, and what its last round took.

import { drawTable, number, setText } from "./elements.js";
import { known } from "./known.js";
import { bytes, clock, duration } from "./text.js";

const PRESENCES = ["working", "idle", "suspect", "lost", "left"];
/** What a device chose its steps and densities by. */
const WHY = { memory: "memory-bound", pace: "pace-bound", capped: "capped" };

export function drawClients() {
  const order = (client) => PRESENCES.indexOf(client.presence);
  const clients = [...known.clients].sort((a, b) => order(a) - order(b) || a.client_id.localeCompare(b.client_id));
  const counts = PRESENCES.map((presence) => [clients.filter((client) => client.presence === presence).length, presence])
    .filter(([count]) => count > 0)
    .map(([count, presence]) => `${count} ${presence}`);
  const { refusals } = known.status;
  setText("clients-about", [...counts, `${refusals} ${refusals === 1 ? "call" : "calls"} refused since the server started`].join(" · "));
  const hot = clients.some((client) => heat(client));
  const columns = [
    { text: "Name" }, { text: "Presence" }, { text: "Labels" },
    { ...number("Steps"), title: "in its last round" },
    { ...number("Prune ratio"), title: "share of the weights left out in its last round, and what made it choose so" },
    { ...number("Down · compute · up"), title: "seconds of its last round" },
    { ...number("Peak memory"), title: "in its last round" },
    number("Memory allowed"),
    ...(hot ? [number("Processor")] : []),
    number("Refused"), number("Last seen"),
  ];
  const rows = clients.map((client) => ({
    cells: [
      { text: client.client_id, class: "text" },
      presence(client),
      { text: Object.entries(client.labels).map(([key, item]) => `${key}=${item}`).join(", "), class: "text" },
      ...lastRound(client.last_round?.report),
      allowed(client),
      ...(hot ? [heat(client) ?? ""] : []),
      String(client.refusals),
      lastSeen(client),
    ],
  }));
  drawTable("clients-table", columns, rows, "No device has joined yet: fedclient join HOST:PORT --data PATH");
}

function presence(client) {
  const reason = client.presence === "left" && client.left_reason ? `: ${client.left_reason}` : "";
  return { text: client.presence + reason, class: `state ${client.presence}`, note: doing(client) };
}

const GOING = { fetching: "downloaded", uploading: "uploaded" };

/** How far it is with its task, as far as the server has seen; also of one that has fallen silent. */
function doing({ presence, live }) {
  if (!["working", "suspect"].includes(presence) || live.task_id === null) return "";
  if (GOING[live.activity]) return live.share === null ? live.activity : `${Math.round(live.share * 100)} % ${GOING[live.activity]}`;
  return live.steps_done ? `step ${live.steps_done}` : "";
}

/** Steps, prune ratio, seconds and peak memory. */
function lastRound(report) {
  if (!report) return ["", "", "", ""];
  const { forecast } = report;
  return [
    String(report.steps),
    { text: `${((1 - report.density) * 100).toFixed(1)} %`, note: WHY[forecast?.why] ?? "" },
    {
      text: `${parts(report).map(brief).join(" · ")} s`,
      bar: parts(report),
      title: `round ${report.round_number}: ${told(report)}${forecast ? `; predicted: ${told(forecast)}` : ""}`,
    },
    { text: bytes(report.peak_bytes), note: forecast ? `${bytes(forecast.peak_bytes)} predicted` : "" },
  ];
}

const parts = (times) => [times.download_seconds, times.compute_seconds, times.upload_seconds];
const brief = (seconds) => (seconds < 10 ? seconds.toFixed(seconds < 1 ? 2 : 1) : String(Math.round(seconds)));

function told(times) {
  const [down, compute, up] = parts(times);
  return `${duration(down + compute + up)} (down ${duration(down)}, compute ${duration(compute)}, up ${duration(up)})`;
}

/** What the device's process may hold, by which limit, and what it holds. */
function allowed({ capability, live }) {
  return {
    text: bytes(capability.memory_bytes),
    note: live?.resident_bytes ? `${bytes(live.resident_bytes)} in use` : "",
    title: capability.memory_bound_by && `by ${capability.memory_bound_by}`,
  };
}

/** Temperature, and what holds the processor back; null where the device tells neither. */
function heat({ capability: { temperature_celsius: celsius, throttled } }) {
  if (celsius === null && throttled.length === 0) return null;
  return {
    text: celsius === null ? "" : `${celsius.toFixed(0)} °C`,
    note: throttled.length ? "held back" : "",
    title: throttled.join(", "),
    class: throttled.length ? "hot" : "",
  };
}

function lastSeen(client) {
  if (client.left_at !== null) return clock(client.left_at);
  if (client.live === null) return "before the restart";
  return client.live.seconds_silent < 5 ? "now" : `${duration(client.live.seconds_silent)} ago`;
}
