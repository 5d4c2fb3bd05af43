// The live page for people: with the keyboard alone, with a screen reader, in both schemes, on a phone.

import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { startBrowser } from "./browser.mjs";
import { startHub } from "./hub.mjs";
import { openLive } from "./live-page.mjs";

const TOPIC = "build/1";

let browser;
before(async () => { browser = await startBrowser(); });
after(() => browser?.close());

const lines = (from, to) =>
  Array.from({ length: to - from + 1 }, (_, n) => ({ topic: TOPIC, type: "line", data: `line ${from + n}` }));

test("everything is reached and worked with the keyboard alone", async (t) => {
  const hub = await startHub(t);
  await hub.publish(lines(1, 5));
  const live = await openLive(t, browser, hub, { topics: [TOPIC] });
  await live.untilRows(5);
  await live.page.evaluate(() => document.activeElement.blur());

  // Tab walks the page once around; every stop has a name and shows that it has the focus.
  const stops = [];
  for (let n = 0; n < 60; n += 1) {
    await live.page.keyboard.press("Tab");
    const stop = await live.page.evaluate(() => {
      const at = document.activeElement;
      if (at === document.body) return null;
      const name = at.getAttribute("aria-label") || [...(at.labels ?? [])].map((label) => label.textContent).join(" ") || at.textContent;
      const outline = getComputedStyle(at);
      return { id: at.id || at.className || at.tagName, name: name.trim(), visible: outline.outlineStyle !== "none" && parseFloat(outline.outlineWidth) > 0 };
    });
    if (!stop) break;
    stops.push(stop);
  }
  for (const stop of stops) assert.ok(stop.name && stop.visible, `${stop.id}: name "${stop.name}", focus visible: ${stop.visible}`);
  const order = ["skip", "topic", "follow", "publish-topic", "publish-data", "filter", "pause", "toggle"];
  assert.deepEqual(stops.map(({ id }) => id).filter((id) => order.includes(id)), order);
  assert.equal(stops.filter(({ id }) => id === "toggle").length, 1, "the list is one stop");

  await live.page.keyboard.press("e");
  await live.page.keyboard.press("ArrowUp");
  await live.page.keyboard.press("Enter");
  assert.equal(await live.by("pretty").textContent(), '"line 4"');
  await live.page.keyboard.press("p");
  assert.equal(await live.by("pause").getAttribute("aria-pressed"), "true");
  await live.page.keyboard.press("p");
  await live.page.keyboard.press("/");
  await live.page.keyboard.type("p?c");
  assert.equal(await live.by("filter").inputValue(), "p?c", "keys are letters in a field");
  await live.page.keyboard.press("Escape");
  await live.page.keyboard.press("?");
  await live.by("help").waitFor();
  await live.page.keyboard.press("Escape");
  await live.page.keyboard.press("n");
  assert.equal(await live.page.evaluate(() => document.activeElement.id), "publish-data");
  live.assertClean();
});

test("every control has a name, every id is unique, and state changes are announced", async (t) => {
  const hub = await startHub(t);
  const live = await openLive(t, browser, hub, { topics: [TOPIC] });
  await live.until("state", "live");
  const faults = await live.page.evaluate(() => {
    const ids = [...document.querySelectorAll("[id]")].map(({ id }) => id);
    const nameless = [...document.querySelectorAll("input, textarea, button, progress")].filter((control) =>
      !control.getAttribute("aria-label") && !control.labels?.length && !control.textContent.trim());
    const dangling = [...document.querySelectorAll("[aria-describedby], [aria-labelledby], label[for]")]
      .flatMap((one) => (one.getAttribute("aria-describedby") ?? one.getAttribute("aria-labelledby") ?? one.htmlFor).split(" "))
      .filter((id) => !document.getElementById(id));
    return [...ids.filter((id, n) => ids.indexOf(id) !== n), ...nameless.map((one) => one.outerHTML), ...dangling];
  });
  assert.deepEqual(faults, []);
  assert.equal(await live.by("announcer").getAttribute("aria-live"), "polite");
  assert.match(await live.by("announcer").textContent(), /^Live, following 1 topic$/);
});

for (const colorScheme of ["light", "dark"]) {
  test(`the page draws itself in the ${colorScheme} scheme, wide and narrow, with contrast`, async (t) => {
    const hub = await startHub(t);
    await hub.publish([...lines(1, 30), { topic: TOPIC, type: "run.progress", class: "state", key: "run/1", data: { current: 3, total: 10 } }]);
    const live = await openLive(t, browser, hub, { topics: [TOPIC], colorScheme });
    await live.until("caughtUp", "true");
    await live.untilRows(31);
    for (const [name, width, height] of [["wide", 1280, 800], ["narrow", 360, 780]]) {
      await live.page.setViewportSize({ width, height });
      const picture = await live.page.screenshot();
      assert.ok(picture.length > 10_000, `${name} ${colorScheme}: ${picture.length} bytes are a blank page`);
      if (process.env.TIDINGS_SCREENSHOTS) {
        await mkdir(process.env.TIDINGS_SCREENSHOTS, { recursive: true });
        await live.page.screenshot({ path: join(process.env.TIDINGS_SCREENSHOTS, `live-${name}-${colorScheme}.png`) });
      }
      assert.ok(await live.page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${name}: nothing sticks out sideways`);
    }
    const { dark, weak } = await live.page.evaluate(contrasts);
    assert.equal(dark, colorScheme === "dark");
    assert.deepEqual(weak, [], "WCAG 1.4.3: at least 4.5 to 1");
    live.assertClean();
  });
}

// Runs in the page: text whose contrast with what is painted behind it is below 4.5 to 1.
function contrasts() {
  const channels = (color) => color.match(/[\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = channels(color).map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const { backgroundColor } = getComputedStyle(at);
      if ((channels(backgroundColor)[3] ?? 1) === 1) return backgroundColor;
    }
    return getComputedStyle(document.documentElement).backgroundColor;
  };
  const weak = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const of = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !of.checkVisibility({ visibilityProperty: true })) continue;
    const [ink, ground] = [luminance(getComputedStyle(of).color), luminance(behind(of))];
    const ratio = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
    if (ratio < 4.5) weak.push(`${of.tagName}.${of.className} "${walker.currentNode.data.trim().slice(0, 20)}" ${ratio.toFixed(2)}`);
  }
  return { dark: luminance(behind(document.body)) < 0.2, weak: [...new Set(weak)] };
}
