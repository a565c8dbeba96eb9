// The table of updates that were refused: whose, when, and why.

import { byId, drawTable, number, setText } from "./elements.js";
import { known } from "./known.js";
import { clock } from "./text.js";

export function drawRefusals() {
  const refusals = known.runId === null ? [] : [...known.refusals].reverse();
  byId("refusals").hidden = refusals.length === 0;
  const names = new Set(refusals.map((item) => item.client_id));
  setText("refusals-about", `${refusals.length} of ${names.size} ${names.size === 1 ? "device" : "devices"}`);
  const rows = refusals.map((item) => ({
    cells: [
      { text: item.client_id, class: "text" },
      String(item.round_number),
      { text: item.finding.reason, class: "text" },
      clock(item.refused_at),
    ],
  }));
  drawTable("refusals-table", [{ text: "Name" }, number("Round"), { text: "Because" }, number("When")], rows, "");
}
