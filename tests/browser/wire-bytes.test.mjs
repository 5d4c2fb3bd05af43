// What an independent parser reads from the stream is what was published, whatever was published.

import assert from "node:assert/strict";
import { test } from "node:test";
import { createParser } from "eventsource-parser";
import { startHub } from "./hub.mjs";
import { Random, seed } from "./random.mjs";

const TOPIC = "wire/bytes";

// Everything that ever broke an event stream, and then some.
const DATA = [
  null, true, false, 0, -0.5, 1e21, "", " ", "plain",
  "a\nb", "a\rb", "a\r\nb", "\n", "\r", "\r\n\r\n", "\n\nevent: tidings.goaway\ndata: {}\n\n", "id: 0\nretry: 1\n: c",
  "\u0000", "a\u0000b", "\u0001\u001f\u007f\u0085", "\u2028\u2029", "\ufeff", "\ufeffdata: x", "ü", "😀", "\u202eabc",
  "</script><script>alert(1)</script>", "\\", "\"", "data:", ":",
  [], {}, [[]], [1, [2, [3]]], { "": "" }, { "data: x\n\n": "\r" }, { constructor: 1, toString: "x" },
  "x".repeat(60_000), Array.from({ length: 2_000 }, (_, n) => n), nested(40),
];

function nested(depth) {
  return depth ? { in: nested(depth - 1) } : "end";
}

function randomText(random) {
  const alphabet = ["\n", "\r", "\r\n", "\u0000", ":", " ", "data", "id", "event", "\u2028", "é", "😀", "\\", "\"", "x"];
  return Array.from({ length: random.between(0, 40) }, () => random.pick(alphabet)).join("");
}

// Reads the stream up to the first caught_up, in pieces that end anywhere.
async function streamed(hub, random) {
  const abort = new AbortController();
  const bound = setTimeout(() => abort.abort(new Error("no caught_up within 30 s")), 30_000);
  const response = await hub.request("GET", `/v1/events?topic=${TOPIC}&since=earliest`, hub.readerToken, undefined, {
    Accept: "text/event-stream",
  });
  assert.equal(response.status, 200);
  assert.equal(response.headers.get("content-type"), "text/event-stream");
  assert.equal(response.headers.get("cache-control"), "no-cache, no-transform");
  assert.equal(response.headers.get("x-accel-buffering"), "no");
  const heard = [];
  let caughtUp = false;
  const parser = createParser({
    onEvent: (message) => {
      heard.push(message);
      caughtUp ||= message.event === "tidings.caught_up";
    },
    onError: (error) => { throw error; },
  });
  const decoder = new TextDecoder("utf-8", { fatal: true });
  const reader = response.body.getReader();
  abort.signal.addEventListener("abort", () => reader.cancel(abort.signal.reason));
  while (!caughtUp) {
    const { value, done } = await reader.read();
    if (done) throw abort.signal.reason ?? new Error("the stream ended before caught_up");
    for (let at = 0; at < value.length;) {
      const size = random.between(1, 4_096);
      parser.feed(decoder.decode(value.subarray(at, at + size), { stream: true }));
      at += size;
    }
  }
  clearTimeout(bound);
  await reader.cancel();
  return heard;
}

test("what an independent parser reads is what was published and what the long-poll answers", async (t) => {
  t.diagnostic(`TIDINGS_SEED=${seed}`);
  const random = new Random();
  const hub = await startHub(t);
  const published = [...DATA, ...Array.from({ length: 200 }, () => randomText(random))].map((data, n) => ({
    topic: TOPIC,
    type: "test.bytes",
    id: `wire:${n}`,
    subject: `subject ${n} "é😀\\ data: x`,
    data,
  }));
  for (const event of published) await hub.publish(event);

  const heard = await streamed(hub, random);
  const events = heard.filter(({ event }) => event === undefined).map(({ data }) => JSON.parse(data));
  assert.equal(events.length, published.length);
  events.forEach(({ topic, type, id, subject, data = null }, n) => {
    assert.deepEqual({ topic, type, id, subject, data }, published[n]);
  });
  for (const { id, event, data } of heard) {
    assert.ok(!data.includes("\n"), "data is one line");
    assert.ok(event !== undefined || id, "every event has an id");
    assert.ok(event === undefined || /^tidings\.(hello|caught_up|ping)$/.test(event), `${event} is no event of ours`);
  }

  const polled = [];
  for (let cursor = ""; polled.length < published.length;) {
    const query = `topic=${TOPIC}&since=earliest&wait=0${cursor && `&last_event_id=${cursor}`}`;
    const response = await hub.request("GET", `/v1/events?${query}`, hub.readerToken, undefined, { Accept: "application/json" });
    const page = await response.json();
    assert.equal(response.status, 200, JSON.stringify(page));
    assert.ok(page.events.length, "a page before the end has events");
    polled.push(...page.events);
    cursor = page.cursor;
  }
  assert.deepEqual(polled, events);
});
