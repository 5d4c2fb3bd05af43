// Chromium's own EventSource: the page does nothing but open it and pass on what it hears.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { startBrowser } from "./browser.mjs";
import { Follower, Publisher } from "./follower.mjs";
import { followPath, startHub } from "./hub.mjs";
import { CuttingProxy } from "./proxy.mjs";
import { Random, seed } from "./random.mjs";

const TOPICS = ["build/1", "user/42", "team/7/jobs"];
const DISCONNECTS = 100;

let browser;
before(async () => { browser = await startBrowser(); });
after(() => browser?.close());

test("Chromium's EventSource sees every event once and in order through 100 disconnects", async (t) => {
  t.diagnostic(`TIDINGS_SEED=${seed}`);
  const random = new Random();
  const hub = await startHub(t);
  const follower = new Follower();
  const proxy = await CuttingProxy.start(t, { target: hub.url, random, watch: follower, bytesMax: 12_000 });
  const publisher = new Publisher(hub, TOPICS, random);

  const page = await browser.newPage();
  t.after(() => page.close());
  await page.exposeFunction("heard", (name, data) => {
    if (name === "message") follower.event(data);
    if (name === "tidings.gap") follower.gaps.push(data);
    if (name === "closed") follower.closed += 1;
    follower.notify();
  });
  // The live page without a token stands still; its origin and its policy are what is needed.
  await page.goto(`${proxy.url}/`);
  await page.evaluate((path) => {
    const source = new EventSource(path);
    for (const name of ["message", "tidings.gap"]) source.addEventListener(name, ({ data }) => heard(name, data));
    source.onerror = () => { if (source.readyState === EventSource.CLOSED) heard("closed", ""); };
  }, followPath(await hub.ticket(), TOPICS));

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
