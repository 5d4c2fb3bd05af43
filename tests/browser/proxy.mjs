// A TCP proxy that cuts event streams at random bytes: the network as readers know it.
//
// The rule: bytes pass unchanged, except that the digits of `retry:` are rewritten in place, so that
// a hundred disconnects take seconds and not minutes. Other requests pass whole.

import { once } from "node:events";
import { connect, createServer } from "node:net";

const HEAD_END = Buffer.from("\r\n\r\n");

export class CuttingProxy {
  cuts = 0;
  cutting = true;
  #server;
  #target;
  #random;
  #watch;
  #bytesMax;
  #sockets = new Set();

  // `watch` is notified of every cut. `bytesMax`: a stream lives for at most so many body bytes.
  static async start(t, { target, random, watch, bytesMax }) {
    const proxy = new CuttingProxy();
    proxy.#target = new URL(target);
    proxy.#random = random;
    proxy.#watch = watch;
    proxy.#bytesMax = bytesMax;
    proxy.#server = createServer((client) => proxy.#join(client));
    proxy.#server.listen(0, "127.0.0.1");
    await once(proxy.#server, "listening");
    proxy.url = `http://127.0.0.1:${proxy.#server.address().port}`;
    t.after(() => proxy.close());
    return proxy;
  }

  close() {
    this.#server.close();
    this.cutAll();
  }

  // Cuts every connection now.
  cutAll() {
    for (const socket of this.#sockets) socket.destroy();
  }

  #join(client) {
    const hub = connect(Number(this.#target.port), this.#target.hostname);
    for (const socket of [client, hub]) {
      this.#sockets.add(socket);
      socket.setNoDelay(true);
      socket.on("error", () => {});
      socket.on("close", () => {
        this.#sockets.delete(socket);
        client.destroy();
        hub.destroy();
      });
    }
    // Once a stream was asked for on this connection, what is left of its life, in bytes.
    let life = null;
    client.on("data", (bytes) => {
      if (bytes.includes("GET /v1/events?")) life = new Life(this.#lifeBytes());
      hub.write(bytes);
    });
    hub.on("data", (bytes) => {
      const passing = life ? life.spend(hurried(bytes)) : bytes;
      client.write(passing, () => {
        if (!life?.over || !this.cutting || client.destroyed) return;
        this.cuts += 1;
        this.#watch.notify();
        // A reset throws away what the kernel still holds, a close does not: both happen.
        if (this.#random.next() < 0.5) client.resetAndDestroy();
        else client.destroy();
        hub.destroy();
      });
    });
  }

  // The first streams live long enough to hear `retry:`, or everybody would wait the default of 3 s.
  #lifeBytes() {
    if (!this.cutting) return Infinity;
    return this.cuts < 2 ? this.#bytesMax : this.#random.between(0, this.#bytesMax);
  }
}

// Counts from the end of the response's head: Chromium takes half a head for a whole one.
class Life {
  over = false;
  #left;
  #head = true;
  #seen = Buffer.alloc(0);

  constructor(bytes) {
    this.#left = bytes;
  }

  // Returns as much of the bytes as this stream still lives for.
  spend(bytes) {
    if (this.over) return Buffer.alloc(0);
    let bodyFrom = 0;
    if (this.#head) {
      const before = this.#seen.length;
      this.#seen = Buffer.concat([this.#seen, bytes]);
      const end = this.#seen.indexOf(HEAD_END);
      if (end < 0) return bytes;
      this.#head = false;
      bodyFrom = end + HEAD_END.length - before;
    }
    const body = bytes.length - bodyFrom;
    this.over = body >= this.#left;
    const passing = this.over ? bytes.subarray(0, bodyFrom + this.#left) : bytes;
    this.#left -= body;
    return passing;
  }
}

function hurried(bytes) {
  const at = bytes.indexOf("\nretry: ");
  if (at < 0) return bytes;
  const text = bytes.toString("latin1");
  const quick = text.replace(/\nretry: (\d+)(?=\n)/g, (_, digits) => `\nretry: ${"20".padStart(digits.length, "0")}`);
  return Buffer.from(quick, "latin1");
}
