// The list of events and notices: bounded, drawn once per animation frame, walked with the keyboard.

import { $, clockOf, element, plural, setText, visible } from "./page.js";

const ROWS_MAX = 1000; // older rows leave the page, the journal keeps them
const PREVIEW_CHARS_MAX = 400; // of data in a row; opening the row shows all of it

const view = {
  rows: [], // in the page, oldest first
  fresh: [], // not yet in the page
  skipped: 0, // while paused, more came than the list can hold
  paused: false,
  following: true, // the end of the list stays in sight
  filter: "",
  current: null, // the row that Tab reaches
  frame: 0,
};

// Takes `{kind: "event", topic, event, text, hue}`, or a notice `{kind, topic, text, time}`.
export function show(record) {
  view.fresh.push(record);
  // A hidden tab draws no frames, so what waits for one is bounded too.
  if (view.fresh.length > 2 * ROWS_MAX) {
    view.fresh.splice(0, ROWS_MAX);
    view.skipped += ROWS_MAX;
  }
  refresh();
}

export function forgetRows(topic) {
  removeRows(view.rows.filter((record) => record.topic === topic));
  view.fresh = view.fresh.filter((record) => record.topic !== topic);
  refresh();
}

function refresh() {
  view.frame ||= requestAnimationFrame(draw);
}

function draw() {
  view.frame = 0;
  if (!view.paused) drawRows();
  drawCounts();
}

function drawRows() {
  if (view.skipped) {
    const text = `${plural(view.skipped, "event")} came and went unseen. The journal holds them.`;
    view.fresh.splice(-ROWS_MAX + 1, 0, { kind: "info", topic: "", text, time: new Date() });
    view.skipped = 0;
  }
  const coming = view.fresh.splice(0).slice(-ROWS_MAX);
  if (!coming.length) return;
  const fragment = document.createDocumentFragment();
  for (const record of coming) {
    record.row = record.kind === "event" ? eventRow(record) : noteRow(record);
    record.row.hidden = !passes(record);
    fragment.append(record.row);
  }
  const excess = view.rows.length + coming.length - ROWS_MAX;
  if (excess > 0) removeRows(view.rows.slice(0, excess));
  view.rows.push(...coming);
  $("rows").append(fragment);
  if (!$("rows").contains(document.activeElement)) makeCurrent(eventRows().at(-1) ?? null);
  if (view.following) toEnd();
}

function drawCounts() {
  const shown = view.rows.filter((record) => !record.row.hidden).length;
  const waiting = view.fresh.length + view.skipped;
  $("empty").hidden = view.rows.length > 0;
  $("newest").hidden = view.following || !view.rows.length;
  const parts = [];
  if (view.filter) parts.push(`${shown} of ${view.rows.length} shown`);
  else if (view.rows.length === ROWS_MAX) parts.push(`newest ${ROWS_MAX} shown`);
  if (view.paused) parts.push(`paused, ${waiting} waiting`);
  setText($("shown"), parts.join(", "));
}

function removeRows(records) {
  const gone = new Set(records);
  const hadFocus = records.some((record) => record.row.contains(document.activeElement));
  for (const record of records) record.row.remove();
  view.rows = view.rows.filter((record) => !gone.has(record));
  if (gone.has(view.current)) {
    view.current = null;
    makeCurrent(eventRows().at(0) ?? null);
    if (hadFocus) view.current?.row.querySelector(".toggle").focus();
  }
}

function passes(record) {
  return record.kind !== "event" || !view.filter || String(record.event.type).toLowerCase().includes(view.filter);
}

function eventRow(record) {
  const { event } = record;
  const row = element("li", `event hue-${record.hue}`);
  row.dataset.testid = "row";
  row.dataset.topic = event.topic ?? "";
  row.dataset.position = event.position ?? "";
  row.dataset.class = event.class ?? "";
  const offset = (event.position ?? "").split("-").pop();
  const toggle = element("button", "toggle");
  toggle.type = "button";
  toggle.tabIndex = -1;
  toggle.setAttribute("aria-expanded", "false");
  toggle.setAttribute("aria-label", `${event.topic} ${offset} ${event.type}`);
  const line = element("div", "line");
  const time = element("time", "time", clockOf(event.time));
  time.dateTime = time.title = String(event.time ?? "");
  const topic = element("span", "topic", event.topic);
  topic.title = event.topic ?? "";
  const type = element("span", "type", event.type);
  type.title = event.type ?? "";
  line.append(toggle, time, topic, element("span", "offset", offset || "·"), type);
  if (event.class && event.class !== "log") line.append(element("span", "class", event.class));
  if (event.deleted) line.append(element("span", "class", "deleted"));
  if (event.key) line.append(element("span", "key", event.key));
  const data = element("span", "data", preview(event));
  data.dataset.testid = "data";
  line.append(data);
  row.append(line);
  return row;
}

function noteRow({ kind, text, time }) {
  const row = element("li", `note ${kind}`);
  row.dataset.testid = "note";
  row.dataset.kind = kind;
  row.append(element("time", "time", clockOf(time)), element("span", "text", text));
  return row;
}

function toggleRow(record) {
  const toggle = record.row.querySelector(".toggle");
  const open = record.row.querySelector(".detail");
  toggle.setAttribute("aria-expanded", String(!open));
  if (open) return open.remove();
  const { event } = record;
  const detail = element("div", "detail");
  const attributes = element("dl", "attributes");
  for (const [name, value] of Object.entries(event)) {
    if (["specversion", "data", "data_base64"].includes(name) || value === null) continue;
    const pair = element("div");
    pair.append(element("dt", "", name), element("dd", "", typeof value === "string" ? value : JSON.stringify(value)));
    attributes.append(pair);
  }
  const data = element("pre", "pretty");
  data.dataset.testid = "pretty";
  data.tabIndex = 0;
  data.textContent = visible(pretty(record), "\n\t");
  detail.append(attributes, data);
  record.row.append(detail);
}

function preview(event) {
  if (typeof event.data_base64 === "string") {
    return `${event.datacontenttype ?? "binary"}, ${plural(Math.floor((event.data_base64.replace(/=+$/, "").length * 3) / 4), "byte")}`;
  }
  if (event.data === undefined) return "";
  if (typeof event.data === "string") return event.data.slice(0, PREVIEW_CHARS_MAX);
  return JSON.stringify(event.data).slice(0, PREVIEW_CHARS_MAX);
}

// Numbers keep the digits they were published with where the browser can tell them.
function pretty({ event, text }) {
  if (event.data_base64 !== undefined) return event.data_base64;
  if (event.data === undefined) return "no data";
  const digits = (_, value, source) =>
    typeof value === "number" && source && JSON.rawJSON ? JSON.rawJSON(source.source) : value;
  return JSON.stringify(JSON.parse(text, digits).data, null, 2);
}

function makeCurrent(record) {
  const tab = (of, index) => {
    const toggle = of?.row.querySelector(".toggle");
    if (toggle) toggle.tabIndex = index;
  };
  tab(view.current, -1);
  view.current = record;
  tab(record, 0);
}

function eventRows() {
  return view.rows.filter((record) => record.kind === "event" && !record.row.hidden);
}

function toEnd() {
  view.following = true;
  $("events").scrollTop = $("events").scrollHeight;
}

// Follows the end of the list again, with the keyboard on its last event.
export function toNewest() {
  makeCurrent(eventRows().at(-1) ?? null);
  view.current?.row.querySelector(".toggle").focus({ preventScroll: true });
  toEnd();
  refresh();
}

export function pause() {
  view.paused = !view.paused;
  $("pause").setAttribute("aria-pressed", String(view.paused));
  refresh();
}

// Empties the list; positions stay.
export function clear() {
  removeRows(view.rows);
  view.fresh.length = 0;
  view.skipped = 0;
  view.following = true;
  refresh();
}

$("events").addEventListener("scroll", () => {
  const { scrollHeight, scrollTop, clientHeight } = $("events");
  view.following = scrollHeight - scrollTop - clientHeight < 32;
  refresh();
}, { passive: true });

new ResizeObserver(() => { if (view.following) toEnd(); }).observe($("events"));

$("rows").addEventListener("click", ({ target }) => {
  const row = target.closest("li.event");
  if (!row || target.closest(".detail") || String(getSelection())) return;
  const record = view.rows.find((one) => one.row === row);
  makeCurrent(record);
  view.following = false;
  toggleRow(record);
  refresh();
});

$("rows").addEventListener("focusin", ({ target }) => {
  if (target.matches(".toggle:focus-visible")) view.following = false;
});

$("rows").addEventListener("keydown", (press) => {
  if (!press.target.matches(".toggle")) return;
  const rows = eventRows();
  const at = rows.indexOf(view.current);
  const to = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: rows.length - 1 }[press.key];
  if (to === undefined || press.ctrlKey || press.altKey || press.metaKey) return;
  press.preventDefault();
  const record = rows[Math.max(0, Math.min(rows.length - 1, to))];
  makeCurrent(record);
  const toggle = record.row.querySelector(".toggle");
  toggle.focus();
  toggle.scrollIntoView({ block: "nearest" });
});

$("filter").addEventListener("input", () => {
  view.filter = $("filter").value.trim().toLowerCase();
  for (const record of view.rows) record.row.hidden = !passes(record);
  makeCurrent(eventRows().at(-1) ?? null);
  if (view.following) toEnd();
  refresh();
});
$("pause").addEventListener("click", pause);
$("clear").addEventListener("click", clear);
$("newest").addEventListener("click", toNewest);
