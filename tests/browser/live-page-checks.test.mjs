// The live page's own check of the hub's promise, on streams that break it and on streams that do not.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { startBrowser } from "./browser.mjs";
import { startHub } from "./hub.mjs";
import { openLive } from "./live-page.mjs";

const TOPIC = "build/1";

let browser;
before(async () => { browser = await startBrowser(); });
after(() => browser?.close());

// The page must not believe the hub: each of these streams breaks the promise in one way. Taking a
// check out of continuity.js fails its row here (tried for each).
const BROKEN_STREAMS = {
  "an offset that repeats": { offsets: [1, 2, 2], says: "build/1 offset 2 came twice." },
  "an offset that goes back": { offsets: [1, 2, 3, 1], says: "build/1 offset 1 came after 3." },
  "a hole that no gap told": { offsets: [1, 2, 5], says: "build/1 lost offsets 3 to 4, and no gap said so." },
  "another epoch that no gap told": { offsets: [1, "zz-1"], says: "build/1 went on in another epoch, and no gap said so." },
};
for (const [what, { offsets, says }] of Object.entries(BROKEN_STREAMS)) {
  test(`the page notices ${what}`, async (t) => {
    const hub = await startHub(t);
    const live = await openForged(t, hub, offsets.map((offset) => forged(offset)).join(""));
    await live.until("continuity", "broken");
    assert.equal(await live.page.locator("[data-kind=broken] .text").first().innerText(), says);
    live.assertClean();
  });
}

test("holes that a gap told or that a later state explains are no fault", async (t) => {
  const hub = await startHub(t);
  const gap = `event: tidings.gap\ndata: ${JSON.stringify({ topic: TOPIC, reason: "lagged", from: 6, to: 9 })}\n\n`;
  const superseded = forged(1) + forged(4) + forged(5, { class: "state", key: "run/1" });
  const live = await openForged(t, hub, superseded + gap + forged(10));
  // The forged stream ends by itself: then all of it was heard.
  await live.until("state", "waiting");
  assert.equal(await live.by("continuity").innerText(), "continuity: 1 gap told");
  live.assertClean();
});

function forged(offset, more = {}) {
  const position = typeof offset === "string" ? offset : `aa-${offset}`;
  const event = { id: position, type: "line", time: "2026-11-21T07:00:00Z", topic: TOPIC, position, class: "log", data: "x", ...more };
  return `id: ${position}\ndata: ${JSON.stringify(event)}\n\n`;
}

// Opens the page on a stream of our own making instead of the hub's.
async function openForged(t, hub, frames) {
  const live = await openLive(t, browser, hub);
  const hello = { connection: "c", heartbeat_ms: 15_000, resumed: "fresh", topics: { [TOPIC]: { epoch: "aa", earliest: 1, tail: 1 } } };
  const body = `retry: 60000\nevent: tidings.hello\nid: c0\ndata: ${JSON.stringify(hello)}\n\n${frames}`
    + `event: tidings.caught_up\ndata: ${JSON.stringify({ topics: { [TOPIC]: 9 } })}\n\n`;
  await live.page.route("**/v1/events?*", (route) => route.fulfill({ status: 200, contentType: "text/event-stream", body }));
  await live.by("topic-input").fill(TOPIC);
  await live.by("topic-add").click();
  await live.by("follow").click();
  return live;
}
