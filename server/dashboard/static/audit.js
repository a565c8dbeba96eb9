// The table of who did what, which operators see.

import { byId, drawTable } from "./elements.js";
import { known } from "./known.js";
import { session } from "./session.js";
import { clock } from "./text.js";

export function drawAudit() {
  byId("audit").hidden = session.role !== "operator";
  const rows = [...known.audit].reverse().map((line) => ({
    cells: [
      { text: clock(line.at), title: new Date(line.at * 1000).toISOString() },
      { text: line.who || "nobody known", class: "text", note: [line.role, line.address].filter(Boolean).join(", ") },
      { text: line.outcome === "done" ? line.action : `${line.action}: ${line.outcome}`, class: line.outcome === "done" ? "" : "state failed" },
      { text: line.detail, class: "text" },
    ],
  }));
  drawTable("audit-table", [{ text: "At" }, { text: "Who" }, { text: "What" }, { text: "Of what" }], rows, "Nothing yet.");
}
