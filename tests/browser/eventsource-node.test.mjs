// npm's EventSource in Node, a plain one: what it knows of resuming is in the specification.

import assert from "node:assert/strict";
import { test } from "node:test";
import { EventSource } from "eventsource";
import { Follower, Publisher } from "./follower.mjs";
import { followPath, startHub } from "./hub.mjs";
import { CuttingProxy } from "./proxy.mjs";
import { Random, seed } from "./random.mjs";

const TOPICS = ["build/1", "user/42", "team/7/jobs"];
const DISCONNECTS = 100;

// Opens one EventSource, and another with the cursor and a new ticket only if it closed for good.
async function follow(t, hub, base, follower) {
  let source = null;
  let cursor = "";
  let over = false;
  t.after(() => {
    over = true;
    source?.close();
  });
  const open = async () => {
    const path = followPath(await hub.ticket(), TOPICS, cursor && { last_event_id: cursor });
    if (over) return;
    source = new EventSource(base + path);
    const heard = (act) => (message) => {
      if (message.lastEventId) cursor = message.lastEventId;
      act(message.data);
    };
    source.addEventListener("message", heard((text) => follower.event(text)));
    source.addEventListener("tidings.hello", heard(() => {
      follower.hellos += 1;
      follower.notify();
    }));
    source.addEventListener("tidings.gap", heard((text) => follower.gaps.push(text)));
    source.addEventListener("error", () => {
      if (source.readyState !== EventSource.CLOSED || over) return;
      follower.closed += 1;
      const again = () => open().catch(() => over || setTimeout(again, 100));
      again();
    });
  };
  await open();
}

test("a plain EventSource sees every event once and in order through 100 disconnects", async (t) => {
  t.diagnostic(`TIDINGS_SEED=${seed}`);
  const random = new Random();
  const hub = await startHub(t);
  const follower = new Follower();
  const proxy = await CuttingProxy.start(t, { target: hub.url, random, watch: follower, bytesMax: 6_000 });
  const publisher = new Publisher(hub, TOPICS, random);

  await follow(t, hub, proxy.url, follower);
  await publisher.publishWhile(() => proxy.cuts < DISCONNECTS, follower);
  proxy.cutting = false;
  await follower.until(
    () => follower.count >= publisher.count,
    () => `${publisher.count} events, ${follower.count} came`,
  );

  publisher.assertSeenBy(follower);
  assert.ok(proxy.cuts >= DISCONNECTS);
  assert.deepEqual(follower.gaps, []);
  assert.equal(follower.closed, 0, "the EventSource never gave up: every reconnect was its own");
});

test("a plain EventSource goes on where it stopped when the hub ends in order, and when it is killed", async (t) => {
  const random = new Random();
  const hub = await startHub(t);
  const follower = new Follower();
  const proxy = await CuttingProxy.start(t, { target: hub.url, random, watch: follower, bytesMax: Infinity });
  const publisher = new Publisher(hub, TOPICS, random);
  await follow(t, hub, proxy.url, follower);

  for (const end of ["stop", "kill", "stop", "kill"]) {
    const target = publisher.count + 100;
    await publisher.publishWhile(() => publisher.count < target, follower);
    const hellos = follower.hellos;
    await hub[end]();
    await hub.start();
    await follower.until(() => follower.hellos > hellos, () => `the reader to come back after ${end}`);
  }
  const target = publisher.count + 100;
  await publisher.publishWhile(() => publisher.count < target, follower);
  await follower.until(
    () => follower.count >= publisher.count,
    () => `${publisher.count} events, ${follower.count} came`,
  );

  publisher.assertSeenBy(follower);
  assert.deepEqual(follower.gaps, []);
});
