// The live page in real Chromium, against a real hub.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { startBrowser } from "./browser.mjs";
import { startHub } from "./hub.mjs";
import { openLive } from "./live-page.mjs";
import { CuttingProxy } from "./proxy.mjs";
import { Random } from "./random.mjs";
import { Watch } from "./watch.mjs";

const TOPIC = "build/1";

let browser;
before(async () => { browser = await startBrowser(); });
after(() => browser?.close());

const lines = (from, to, topic = TOPIC) =>
  Array.from({ length: to - from + 1 }, (_, n) => ({ topic, type: "line", data: `line ${from + n}` }));
const asRows = (from, to) => Array.from({ length: to - from + 1 }, (_, n) => [from + n, `line ${from + n}`]);

test("a topic is chosen from the list and its lines appear, those before and those after", async (t) => {
  const hub = await startHub(t);
  await hub.publish([...lines(1, 20), { topic: "user/42", type: "test.note", data: "not chosen" }]);
  const live = await openLive(t, browser, hub);
  await live.by("topics").getByRole("checkbox", { name: TOPIC }).check();
  await live.by("follow").click();
  await live.until("caughtUp", "true");
  await hub.publish(lines(21, 40));
  await live.untilRows(40);

  assert.deepEqual(await live.rows(TOPIC), asRows(1, 40));
  assert.deepEqual(await live.rows("user/42"), []);
  assert.equal(await live.by("continuity").innerText(), "continuity: exact");
  assert.equal(new URL(live.page.url()).search, `?topic=${TOPIC}`);
  assert.equal(new URL(live.page.url()).hash, "", "the credentials left the address");
  live.assertClean();
});

test("a topic that does not exist yet can be followed and is added to a running connection", async (t) => {
  const hub = await startHub(t);
  await hub.publish(lines(1, 5));
  const live = await openLive(t, browser, hub, { topics: [TOPIC] });
  await live.untilRows(5);
  await live.by("topic-input").fill("new/topic");
  await live.by("topic-add").click();
  await live.page.locator("[data-testid=topic][data-topic='new/topic'] .place.done").waitFor();
  await hub.publish([...lines(1, 3, "new/topic"), ...lines(6, 7)]);
  await live.untilRows(10);

  assert.deepEqual(await live.rows("new/topic"), asRows(1, 3));
  assert.deepEqual(await live.rows(TOPIC), asRows(1, 7));
  assert.equal(await live.page.evaluate(() => document.documentElement.dataset.continuity), "exact");
  assert.equal(await live.number("count-reconnects"), 0, "another choice is no reconnect");
  live.assertClean();
});

test("an event published from the page arrives in the page, and long numbers keep their digits", async (t) => {
  const hub = await startHub(t);
  const live = await openLive(t, browser, hub, { topics: [TOPIC] });
  await live.until("state", "live");
  await live.by("publish-type").fill("test.number");
  await live.by("publish-data").fill('{"n": 12345678901234567890123, "x": 1.10}');
  await live.by("publish-data").press("Control+Enter");
  assert.match(await live.by("publish-stored").innerText(), /^Stored in build\/1 at offset 1\.$/);
  await live.untilRows(1);
  await live.by("row").locator(".toggle").click();

  assert.equal(await live.by("pretty").textContent(), '{\n  "n": 12345678901234567890123,\n  "x": 1.10\n}');
  live.assertClean();
});

test("what the hub refuses to store is said in words, at the field", async (t) => {
  const hub = await startHub(t);
  const live = await openLive(t, browser, hub, { topics: [TOPIC] });
  await live.by("publish-type").fill("Not A Type");
  await live.by("publish-send").click();
  assert.match(await live.by("publish-problem").innerText(), /type/i);
  assert.equal(await live.by("publish-type").getAttribute("aria-invalid"), "true");

  await live.by("publish-type").fill("test.note");
  await live.by("publish-data").fill("{not json");
  await live.by("publish-send").click();
  await live.by("publish-problem").filter({ hasText: "Data is not JSON" }).waitFor();
  assert.equal(await live.by("publish-data").getAttribute("aria-invalid"), "true");
  assert.equal(await live.number("count-events"), 0);
  live.assertClean();
});

test("reloaded in the middle of a stream, the list is whole again", async (t) => {
  const hub = await startHub(t);
  const live = await openLive(t, browser, hub, { topics: [TOPIC] });
  await live.until("state", "live");
  const publishing = (async () => {
    for (let from = 1; from <= 600; from += 5) await hub.publish(lines(from, from + 4));
  })();
  for (const seen of [50, 200, 400]) {
    await live.untilRows(seen);
    await live.page.reload();
  }
  await publishing;
  await live.untilRows(600);

  assert.deepEqual(await live.rows(TOPIC), asRows(1, 600));
  assert.equal(await live.page.evaluate(() => document.documentElement.dataset.continuity), "exact");
  live.assertClean();
});

test("killed and started again, the hub goes on in the page where it stopped", async (t) => {
  const hub = await startHub(t);
  const live = await openLive(t, browser, hub, { topics: [TOPIC] });
  await live.until("caughtUp", "true");
  await hub.publish(lines(1, 50));
  await live.untilRows(50);
  await hub.kill();
  await live.until("state", "waiting");
  await hub.start();
  await hub.publish(lines(51, 80));
  await live.until("state", "live");
  await live.untilRows(80);

  assert.deepEqual(await live.rows(TOPIC), asRows(1, 80));
  assert.equal(await live.page.evaluate(() => document.documentElement.dataset.continuity), "exact");
  assert.ok(await live.number("count-reconnects") >= 1);
  assert.equal(await live.number("count-gaps"), 0);
  live.assertClean();
});

test("what is piped into `tidings publish --lines` appears line by line, through a reload and a kill -9", async (t) => {
  const hub = await startHub(t);
  const live = await openLive(t, browser, hub, { topics: [TOPIC] });
  await live.until("caughtUp", "true");
  const { stdin, ended } = hub.pipe(TOPIC);
  const say = (from, to) => stdin.write(lines(from, to).map(({ data }) => `${data}\n`).join(""));
  say(1, 100);
  await live.untilRows(100);
  await live.page.reload();
  say(101, 200);
  await live.untilRows(150);
  await hub.kill();
  say(201, 300);
  stdin.end();
  await hub.start();
  await ended;
  await live.untilRows(300);

  assert.deepEqual(await live.rows(TOPIC), asRows(1, 300));
  assert.equal(await live.by("continuity").innerText(), "continuity: exact");
  live.assertClean();
});

test("a hub that ends in order says so, and the page comes back to the next one", async (t) => {
  const hub = await startHub(t);
  const live = await openLive(t, browser, hub, { topics: [TOPIC] });
  await live.until("caughtUp", "true");
  await hub.publish(lines(1, 10));
  await live.untilRows(10);
  await hub.stop();
  await live.page.locator("[data-kind=goaway]").filter({ hasText: "drain" }).first().waitFor();
  await hub.start();
  await hub.publish(lines(11, 20));
  await live.untilRows(20);

  assert.deepEqual(await live.rows(TOPIC), asRows(1, 20));
  assert.equal(await live.page.evaluate(() => document.documentElement.dataset.continuity), "exact");
  live.assertClean();
});

test("where the browser gives up, the page goes on with a new ticket and its cursor", async (t) => {
  const hub = await startHub(t);
  const proxy = await CuttingProxy.start(t, { target: hub.url, random: new Random(), watch: new Watch(), bytesMax: Infinity });
  const live = await openLive(t, browser, hub, { topics: [TOPIC], base: proxy.url });
  await live.until("caughtUp", "true");
  await hub.publish(lines(1, 10));
  await live.untilRows(10);
  const cursor = await live.by("cursor").textContent();
  const asked = [];
  live.page.on("request", (request) => asked.push(new URL(request.url())));
  await live.page.route("**/v1/events?*", (route) => route.fulfill({ status: 401, body: "{}" }), { times: 1 });
  proxy.cutAll();
  await hub.publish(lines(11, 20));
  await live.untilRows(20);

  const followed = asked.filter(({ pathname }) => pathname === "/v1/events");
  assert.equal(asked.filter(({ pathname }) => pathname === "/v1/tickets").length, 1);
  assert.notEqual(followed.at(-1).searchParams.get("ticket"), followed.at(0).searchParams.get("ticket"));
  assert.equal(followed.at(-1).searchParams.get("last_event_id"), cursor);
  assert.deepEqual(await live.rows(TOPIC), asRows(1, 20));
  assert.equal(await live.by("continuity").innerText(), "continuity: exact");
  live.assertClean();
});

test("a topic that is closed is read to its end and the page stays away", async (t) => {
  const hub = await startHub(t);
  await hub.publish(lines(1, 5));
  const live = await openLive(t, browser, hub, { topics: [TOPIC] });
  await live.untilRows(5);
  await hub.publish(lines(6, 6));
  await hub.closeTopic(TOPIC);
  await live.until("state", "ended");

  assert.match(await live.by("state").innerText(), /every topic is closed/);
  assert.deepEqual(await live.rows(TOPIC), asRows(1, 6));
  live.assertClean();
});

test("a topic that was deleted and begun again shows as a gap with its reason", async (t) => {
  const hub = await startHub(t);
  await hub.publish(lines(1, 10));
  const live = await openLive(t, browser, hub, { topics: [TOPIC] });
  await live.untilRows(10);
  await hub.deleteTopic(TOPIC);
  await hub.publish([{ topic: TOPIC, type: "line", data: "another history" }]);
  await live.by("note").and(live.page.locator("[data-kind=gap]")).first().waitFor();
  await live.by("row").filter({ hasText: "another history" }).waitFor();

  assert.match(await live.page.locator("[data-kind=gap]").first().innerText(), /Gap in build\/1: .*epoch/);
  assert.equal(await live.page.evaluate(() => document.documentElement.dataset.continuity), "gaps");
  assert.match(await live.by("continuity").innerText(), /^continuity: \d+ gaps? told$/);
  live.assertClean();
});

test("markup in topics, types, keys and data is shown as text and runs nothing", async (t) => {
  const hub = await startHub(t);
  const bad = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'><svg/onload=alert(3)>";
  await hub.publish([
    { topic: TOPIC, type: "test.note", subject: bad, source: bad, id: "<b>1</b>", data: bad },
    { topic: TOPIC, type: "test.note", class: "state", key: bad, data: { [bad]: [bad] } },
    { topic: TOPIC, type: "test.note", data: "\u202etxt.exe \u0000 \u001b[31m" },
  ]);
  const live = await openLive(t, browser, hub, { search: `topic=${TOPIC}&topic=${encodeURIComponent(bad)}` });
  await live.untilRows(3);
  for (const toggle of await live.page.locator(".toggle").all()) await toggle.click();
  await live.by("pretty").nth(2).waitFor();

  const shown = await live.rows(TOPIC);
  assert.equal(shown[0][1], bad);
  assert.equal(shown[1][1], JSON.stringify({ [bad]: [bad] }));
  assert.equal(shown[2][1], "\ufffdtxt.exe \u2400 \u241b[31m");
  assert.equal(await live.page.locator("main img, main script, main b, .event svg").count(), 0);
  assert.ok((await live.page.locator("#topic-error").innerText()).includes("<img src=x"));

  await live.by("publish-topic").fill(bad);
  await live.by("publish-send").click();
  await live.by("publish-problem").waitFor();
  await live.by("filter").fill(bad);
  live.assertClean();
});

test("without a token the page asks for one, and with a wrong one it says why", async (t) => {
  const hub = await startHub(t);
  await hub.publish(lines(1, 3));
  const live = await openLive(t, browser, hub, { topics: [TOPIC], fragment: "" });
  await live.by("token").waitFor();
  await live.by("token").fill("not.a.token");
  await live.by("token").press("Enter");
  await live.until("state", "ended");
  await live.by("token-form").waitFor();
  await live.by("token").fill(hub.readerToken);
  await live.by("token").press("Enter");
  await live.untilRows(3);
  assert.equal(await live.by("token-form").isVisible(), false);
  live.assertClean();
});

test("pause holds the list, clear empties it, the filter narrows it, and nothing is lost by it", async (t) => {
  const hub = await startHub(t);
  await hub.publish(lines(1, 3));
  const live = await openLive(t, browser, hub, { topics: [TOPIC] });
  await live.untilRows(3);
  await live.by("pause").click();
  await hub.publish([...lines(4, 6), { topic: TOPIC, type: "other.type", data: "seven" }]);
  await live.page.getByText("paused, 4 waiting").waitFor();
  assert.equal((await live.rows(TOPIC)).length, 3);
  await live.by("pause").click();
  await live.untilRows(7);
  await live.by("filter").fill("other");
  await live.page.getByText("1 of 7 shown").waitFor();
  assert.equal(await live.page.locator("[data-testid=row]:visible").count(), 1);
  await live.by("filter").fill("");
  await live.by("clear").click();
  assert.equal((await live.rows(TOPIC)).length, 0);
  await hub.publish(lines(8, 8));
  await live.untilRows(1);
  assert.deepEqual(await live.rows(TOPIC), asRows(8, 8));
  assert.equal(await live.by("continuity").innerText(), "continuity: exact");
  live.assertClean();
});

test("under a flood the list stays bounded and the count stays exact", async (t) => {
  const hub = await startHub(t);
  const live = await openLive(t, browser, hub, { topics: [TOPIC] });
  await live.until("state", "live");
  for (let from = 1; from <= 5_000; from += 250) await hub.publish(lines(from, from + 249));
  await live.page.waitForFunction(() => document.querySelector("[data-testid=count-events]").textContent === "5000");
  await live.page.waitForFunction(() => [...document.querySelectorAll("[data-testid=row]")].at(-1).dataset.position.endsWith("-5000"));

  assert.ok(await live.page.locator("#rows > li").count() <= 1_000);
  assert.equal(await live.by("continuity").innerText(), "continuity: exact");
  live.assertClean();
});
