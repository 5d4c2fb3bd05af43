// One EventSource, its tickets and its reconnects.
//
// The rule: the browser's own reconnect goes first; only where it gives up, or would come back with a
// ticket that is worth nothing, the page goes on with a new ticket and the cursor.
//
// A page that was reloaded asks for `since=earliest` instead of keeping rows and cursor: the list is
// whole again, and what it shows is what the journal holds.

import { Continuity } from "./continuity.js";
import { askForToken, session } from "./credentials.js";
import { call, Problem } from "./hub.js";
import { $, active, announce, clockOf, page, parsed, plural, seconds, setState, setText } from "./page.js";
import { clear, forgetRows, show } from "./rows.js";
import { chosen, drawPosition, refuseTopic } from "./topics.js";

const RETRY_MIN_MS = 500;
const RETRY_MAX_MS = 20_000;
const SILENCE_HEARTBEATS = 3; // without a frame: the connection is dead, whatever the browser says
const SILENCE_CHECK_MS = 5_000;
const PASSING_GOAWAYS = ["drain", "max_age", "slow", "unavailable"]; // the same ticket comes back

let continuity = new Continuity();
const link = {
  source: null,
  attempt: 0, // the newest one; what an older one still hears does not count
  failures: 0, // in a row
  timer: 0,
  cursor: "",
  greeted: false, // whether this source heard a hello
  expected: true, // whether the next hello was asked for by a person, and is no reconnect
  heartbeatMs: 15_000,
  heardAt: 0,
  reconnects: 0,
  received: 0,
  frame: 0,
  asked: "", // topics of the newest connection
  forgotten: new Set(), // topics that the cursor may still cover though their rows are gone
};

export function follow() {
  if (!session.token) return askForToken("");
  if (!chosen.size) return refuseTopic("Choose at least one topic.");
  link.failures = 0;
  link.expected = true;
  connect();
}

export function stop(detail = "stopped") {
  leave();
  become("ended", detail);
}

export function forget(topic) {
  continuity.forget(topic);
  forgetRows(topic);
  link.forgotten.add(topic);
}

// Another choice needs another connection; the cursor is kept by topic, so the others go on.
export function choiceChanged() {
  if ([...chosen.keys()].some((topic) => link.forgotten.has(topic))) startOver();
  if (!active()) return;
  if (!chosen.size) stop("no topic is chosen");
  else if (link.asked !== [...chosen.keys()].join(" ")) follow();
}

// A topic that was dropped and chosen again has no rows to go on from: everything replays.
function startOver() {
  link.cursor = link.asked = "";
  link.forgotten.clear();
  continuity = new Continuity();
  clear();
}

function leave() {
  link.attempt += 1;
  link.source?.close();
  link.source = null;
  clearTimeout(link.timer);
  for (const topic of chosen.values()) topic.caughtUp = false;
}

async function connect() {
  leave();
  const attempt = link.attempt;
  link.asked = [...chosen.keys()].join(" ");
  become("connecting", "asking for a ticket");
  let ticket;
  try {
    ({ ticket } = await call("POST", "v1/tickets", session.token, "{}"));
  } catch (problem) {
    if (attempt === link.attempt) refused(problem);
    return;
  }
  if (attempt !== link.attempt) return;
  const query = new URLSearchParams({ ticket });
  for (const topic of chosen.keys()) query.append("topic", topic);
  query.set("since", "earliest");
  if (link.cursor) query.set("last_event_id", link.cursor);
  listen(new EventSource(`v1/events?${query}`));
}

function listen(source) {
  link.source = source;
  link.greeted = false;
  link.heardAt = performance.now();
  become("connecting", "waiting for the hub");
  const on = (name, act) => source.addEventListener(name, (message) => {
    if (source !== link.source) return;
    link.heardAt = performance.now();
    if (message.lastEventId) link.cursor = message.lastEventId;
    act(name === "message" ? message.data : parsed(message.data));
    refresh();
  });
  on("message", received);
  on("tidings.hello", greeted);
  on("tidings.caught_up", caughtUp);
  on("tidings.ping", () => settle());
  on("tidings.gap", gapTold);
  on("tidings.closed", ({ topic }) => note("info", `${topic} is closed: nothing follows.`, topic));
  on("tidings.goaway", sentAway);
  on("tidings.problem", troubled);
  on("tidings.auth", ({ expires_at: at }) => note("info", `Access ends at ${clockOf(at)}.`));
  source.onopen = () => { link.heardAt = performance.now(); };
  source.onerror = () => { if (source === link.source) dropped(source); };
}

// While readyState is CONNECTING the browser comes back by itself, with Last-Event-ID. CLOSED means
// that it gave up for good, as it does on any status but 200.
function dropped(source) {
  if (source.readyState === EventSource.CLOSED) return again("the browser gave up");
  if (page.dataset.state === "live") note("info", "Connection lost.");
  for (const topic of chosen.values()) topic.caughtUp = false;
  become("waiting", "the browser comes back by itself");
}

function again(why, atLeastMs = 0) {
  leave();
  const ceilingMs = Math.min(RETRY_MAX_MS, RETRY_MIN_MS * 2 ** link.failures);
  link.failures += 1;
  const inMs = Math.max(atLeastMs, ceilingMs * (0.5 + Math.random() / 2));
  become("waiting", `${why}, next attempt in ${seconds(inMs)}`);
  link.timer = setTimeout(connect, inMs);
}

function refused(problem) {
  if (problem.status === 401 || problem.status === 403) {
    stop(problem.message);
    askForToken(problem.sentence);
  } else if (problem.retryable) {
    again(problem.message, problem.retryAfterMs);
  } else {
    stop(problem.message);
    note("problem", problem.sentence);
  }
}

function greeted(hello) {
  link.failures = 0;
  link.heartbeatMs = hello.heartbeat_ms ?? link.heartbeatMs;
  if (!link.expected) {
    link.reconnects += 1;
    note("info", hello.resumed === "exact" ? "Reconnected, resumed exactly." : "Reconnected.");
  }
  link.expected = false;
  link.greeted = true;
  link.forgotten.clear();
  for (const [name, { earliest = 1, tail = 1 }] of Object.entries(hello.topics ?? {})) {
    Object.assign(chosen.get(name) ?? {}, { earliest, tail });
    continuity.of(name);
  }
  become("live", `following ${plural(chosen.size, "topic")}`);
}

function received(text) {
  link.received += 1;
  const event = parsed(text);
  const topic = chosen.get(event.topic);
  const fault = event.position ? continuity.event(event.topic, event.position, event.class === "state") : "";
  if (topic && event.position) topic.last = continuity.of(event.topic).last;
  show({ kind: "event", topic: event.topic, event, text, hue: topic?.hue ?? 0 });
  if (fault) note("broken", fault, event.topic);
}

function caughtUp({ topics = {} }) {
  for (const name of Object.keys(topics)) Object.assign(chosen.get(name) ?? {}, { caughtUp: true });
  settle(Object.keys(topics));
}

function settle(topics) {
  for (const fault of continuity.settle(topics)) note("broken", fault);
}

function gapTold(gap) {
  continuity.gap(gap);
  const bounded = Number.isFinite(gap.from) && Number.isFinite(gap.to);
  const what = bounded ? `offsets ${gap.from} to ${gap.to} are gone` : "earlier events are gone";
  const why = {
    trimmed: "retention trimmed them",
    epoch: "the topic has a new history",
    unknown_cursor: "the hub does not know the cursor",
    lagged: "this reader was overrun",
  }[gap.reason] ?? gap.reason;
  note("gap", `Gap in ${gap.topic}: ${what}, ${why} (${gap.reason}).`, gap.topic);
  announce(`Gap in ${gap.topic}, ${why}`);
}

function sentAway({ reason, retry_ms: retryMs = 0 }) {
  if (reason === "closed") return stop("every topic is closed and was read to its end");
  note("goaway", `The hub ends this connection (${reason})${retryMs ? `, come back in ${seconds(retryMs)}` : ""}.`);
  // Expired, revoked, or a ticket that the hub does not know: the browser would repeat it for ever.
  if (!PASSING_GOAWAYS.includes(reason)) again(`access ended (${reason})`, retryMs);
}

function troubled(body) {
  const problem = new Problem(body, body.status ?? 0);
  note("problem", problem.sentence);
  if (!link.greeted && body.retryable === false) refused(problem);
}

function note(kind, text, topic = "") {
  show({ kind, text, topic, time: new Date() });
}

function become(state, detail) {
  setState(state, detail);
  refresh();
}

function refresh() {
  link.frame ||= requestAnimationFrame(() => {
    link.frame = 0;
    const [verdict, words] = continuity.verdict;
    page.dataset.continuity = verdict;
    page.dataset.caughtUp = String(chosen.size > 0 && [...chosen.values()].every((topic) => topic.caughtUp));
    setText($("continuity-text"), words);
    setText($("count-events"), String(link.received));
    setText($("count-reconnects"), String(link.reconnects));
    setText($("count-gaps"), String(continuity.gapsTold));
    setText($("cursor"), link.cursor || "none");
    for (const topic of chosen.values()) drawPosition(topic);
    drawEmpty();
  });
}

// What stands where the events will be.
function drawEmpty() {
  const [title, text] = {
    live: ["Nothing here yet", "The hub is connected; the next event shows at once."],
    connecting: ["Connecting", "Asking the hub."],
    waiting: ["Not connected now", "This page comes back by itself, where it stopped."],
  }[page.dataset.state] ?? ["Nothing followed yet", "Choose a topic and press Follow."];
  setText($("empty-title"), title);
  setText($("empty-text"), text);
  setText($("empty-topic"), [...chosen.keys()][0] ?? "build/1");
}

// A connection may be dead without the browser knowing: a laptop slept, a router forgot it.
setInterval(() => {
  if (!link.source || page.dataset.state === "waiting") return;
  if (performance.now() - link.heardAt > SILENCE_HEARTBEATS * link.heartbeatMs) again("the hub fell silent");
}, SILENCE_CHECK_MS);
addEventListener("online", () => { if (page.dataset.state === "waiting") connect(); });
addEventListener("pageshow", ({ persisted }) => { if (persisted && active()) connect(); });
