// The live page as its tests see it: opened in Chromium, read by its hooks, watched for what it must
// never do.

import assert from "node:assert/strict";

// Opens the page with credentials and, if given, topics; `base` is where, if not at the hub itself.
// It ends with the test.
export async function openLive(t, browser, hub, { topics = [], search = "", fragment, base = hub.url, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, reducedMotion: "reduce", ...options });
  t.after(() => context.close());
  const page = await context.newPage();
  const live = new LivePage(page, base);
  await live.watch();
  const query = search || topics.map((topic) => `topic=${encodeURIComponent(topic)}`).join("&");
  const given = fragment ?? `token=${hub.readerToken}&key=${hub.publisherKey}`;
  await page.goto(`${base}/${query && `?${query}`}${given && `#${given}`}`);
  return live;
}

class LivePage {
  errors = []; // exceptions and violations of the content security policy
  foreign = []; // requests to anybody but the hub

  constructor(page, url) {
    this.page = page;
    this.url = url;
  }

  async watch() {
    this.page.on("pageerror", (error) => this.errors.push(error.message));
    this.page.on("dialog", (dialog) => {
      this.errors.push(`dialog: ${dialog.message()}`);
      dialog.dismiss();
    });
    this.page.on("request", (request) => {
      const address = request.url();
      if (!address.startsWith(this.url) && !address.startsWith("data:")) this.foreign.push(address);
    });
    await this.page.exposeFunction("violated", (what) => this.errors.push(`policy: ${what}`));
    await this.page.addInitScript(() => {
      addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) => violated(`${violatedDirective} ${blockedURI}`));
    });
  }

  by(testid) {
    return this.page.getByTestId(testid);
  }

  // Resolves when <html data-NAME> is the value.
  async until(name, value) {
    await this.page.waitForFunction(([key, wanted]) => document.documentElement.dataset[key] === wanted, [name, value]);
  }

  async untilRows(count) {
    await this.page.waitForFunction((wanted) => document.querySelectorAll("[data-testid=row]").length >= wanted, count);
  }

  // Offset and shown data of every row of a topic, in the order of the list.
  async rows(topic) {
    return this.page.$$eval("[data-testid=row]", (rows, wanted) => rows
      .filter((row) => row.dataset.topic === wanted)
      .map((row) => [Number(row.dataset.position.split("-").pop()), row.querySelector("[data-testid=data]").textContent]), topic);
  }

  async number(testid) {
    return Number(await this.by(testid).textContent());
  }

  assertClean() {
    assert.deepEqual(this.errors, []);
    assert.deepEqual(this.foreign, []);
  }
}
