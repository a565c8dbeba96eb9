// Numbers and times as people read them.

import { now } from "./known.js";

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; count >= 1000 && unit < units.length - 1; unit += 1) count /= 1000;
  return `${count.toFixed(unit === 0 || count >= 100 ? 0 : 1)} ${units[unit]}`;
}

export function duration(seconds) {
  if (seconds < 10) return `${Math.max(seconds, 0).toFixed(seconds < 1 ? 2 : 1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.round(minutes / 60 / 24)} days`;
}

/** Whether a metric is from 0 to 1 and shown in per cent. */
export const isShare = (metric) => /accuracy|^density$/.test(metric);

export function value(metric, number) {
  if (number === null || number === undefined) return "–";
  if (isShare(metric)) return `${(number * 100).toFixed(1)} %`;
  if (number !== 0 && (Math.abs(number) >= 1e5 || Math.abs(number) < 1e-3)) return number.toExponential(2);
  return String(Number(number.toPrecision(4)));
}

export function clock(at) {
  const date = new Date(at * 1000);
  const time = date.toLocaleTimeString([], { hour12: false });
  return now() - at < 20 * 3600 ? time : `${date.toLocaleDateString()} ${time}`;
}

export const title = (metric) => metric.charAt(0).toUpperCase() + metric.slice(1).replaceAll("_", " ");
