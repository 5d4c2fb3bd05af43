// A real hub: the binary on a data directory of its own, killed and started again on the same port.
//
// The rule: a test talks to it over HTTP alone, as anybody would, and ends only what it started.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const BINARY = process.env.TIDINGS_BIN ?? fileURLToPath(new URL("../../target/debug/tidings", import.meta.url));
const START_MS = 30_000;
const STOP_MS = 60_000; // above the drain window
const STDERR_CHARS_MAX = 20_000;

// Starts a hub that ends with the test `t`.
export async function startHub(t) {
  if (!existsSync(BINARY)) throw new Error(`no hub at ${BINARY}: cargo build -p tidings-server, or set TIDINGS_BIN`);
  const hub = new Hub(await mkdtemp(join(tmpdir(), "tidings-browser-")));
  t.after(() => hub.remove());
  await hub.start();
  return hub;
}

class Hub {
  #data;
  #process = null;
  #listen = "127.0.0.1:0";
  #stderr = "";

  constructor(data) {
    this.#data = data;
  }

  async start() {
    const started = spawn(BINARY, ["dev", "--json", "--listen", this.#listen, "--data", this.#data], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    this.#process = started;
    started.stderr.setEncoding("utf8").on("data", (text) => {
      this.#stderr = (this.#stderr + text).slice(-STDERR_CHARS_MAX);
    });
    const lines = createInterface({ input: started.stdout });
    const bound = AbortSignal.timeout(START_MS);
    const [line] = await Promise.race([
      once(lines, "line", { signal: bound }),
      once(started, "exit").then(([code]) => { throw new Error(`the hub ended with ${code}\n${this.#stderr}`); }),
    ]).catch((error) => { throw new Error(`the hub did not start: ${error.message}\n${this.#stderr}`); });
    const said = JSON.parse(line);
    this.url = said.url.replace(/\/+$/, "");
    this.publisherKey = said.publisher_key;
    this.readerToken = said.reader_token;
    this.#listen = new URL(this.url).host;
  }

  // What the hub wrote to stderr, the newest of it.
  get log() {
    return this.#stderr;
  }

  // kill -9, as a power cut would.
  async kill() {
    await this.#end("SIGKILL");
  }

  // An orderly end: readers are told when to come back.
  async stop() {
    await this.#end("SIGTERM");
  }

  async #end(signal) {
    const running = this.#process;
    if (!running || running.exitCode !== null || running.signalCode !== null) return;
    const ended = once(running, "exit", { signal: AbortSignal.timeout(STOP_MS) });
    running.kill(signal);
    await ended;
  }

  async remove() {
    await this.kill();
    await rm(this.#data, { recursive: true, force: true });
  }

  // Publishes events in one request; all must be stored. Returns the results in their order.
  async publish(events) {
    const list = [events].flat();
    const response = await this.request("POST", "/v1/events", this.publisherKey, JSON.stringify(list));
    const body = await response.json();
    const refused = body.results?.find((result) => result.error);
    if (!response.ok || refused) throw new Error(`publish: ${response.status} ${JSON.stringify(refused ?? body)}`);
    return body.results;
  }

  // `tidings publish --lines`: returns its stdin, and `ended`, which rejects if a line was refused.
  pipe(topic) {
    const publisher = spawn(BINARY, ["publish", "--lines", "--quiet", "--topic", topic], {
      env: { PATH: process.env.PATH, TIDINGS_URL: this.url, TIDINGS_KEY: this.publisherKey },
      stdio: ["pipe", "ignore", "pipe"],
    });
    let said = "";
    publisher.stderr.setEncoding("utf8").on("data", (text) => { said = (said + text).slice(-STDERR_CHARS_MAX); });
    const ended = once(publisher, "exit").then(([code]) => {
      if (code !== 0) throw new Error(`publish --lines ended with ${code}\n${said}`);
    });
    return { stdin: publisher.stdin, ended };
  }

  async ticket() {
    const response = await this.request("POST", "/v1/tickets", this.readerToken, "{}");
    const body = await response.json();
    if (!response.ok) throw new Error(`ticket: ${response.status} ${JSON.stringify(body)}`);
    return body.ticket;
  }

  async deleteTopic(topic) {
    const response = await this.request("DELETE", `/v1/topics/${topic}`, this.publisherKey);
    if (!response.ok) throw new Error(`delete: ${response.status} ${await response.text()}`);
  }

  async closeTopic(topic) {
    const response = await this.request("PUT", `/v1/topics/${topic}`, this.publisherKey, '{"closed":true}');
    if (!response.ok) throw new Error(`close: ${response.status} ${await response.text()}`);
  }

  request(method, path, credential, body, headers = {}) {
    const given = { Authorization: `Bearer ${credential}`, ...(body && { "Content-Type": "application/json" }) };
    return fetch(this.url + path, { method, body, headers: { ...given, ...headers } });
  }
}

// The path that a native EventSource follows: everything it needs is in the query.
export function followPath(ticket, topics, more = {}) {
  const query = new URLSearchParams({ ticket });
  for (const topic of topics) query.append("topic", topic);
  for (const [name, value] of Object.entries({ since: "earliest", ...more })) query.set(name, value);
  return `/v1/events?${query}`;
}
