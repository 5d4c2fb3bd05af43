// What a reader saw and what publishers were told: the two lists that must be equal.
//
// Proven by breaking the hub (connection.rs): with the cursor moved for the first topic alone, events
// come twice; with the cursor moved for a batch before its first frame, events are lost. Both fail.

import assert from "node:assert/strict";
import { Watch } from "./watch.mjs";

export class Follower extends Watch {
  seen = new Map(); // topic → ids in the order of arrival
  count = 0;
  gaps = [];
  closed = 0;
  hellos = 0;

  event(text) {
    const { topic, id } = JSON.parse(text);
    if (!this.seen.has(topic)) this.seen.set(topic, []);
    this.seen.get(topic).push(id);
    this.count += 1;
    this.notify();
  }
}

// Publishes over several topics, one request after the other, and remembers what was acknowledged.
export class Publisher {
  acknowledged = new Map(); // topic → ids by offset
  count = 0;
  #hub;
  #topics;
  #random;

  constructor(hub, topics, random) {
    Object.assign(this, { acknowledged: new Map(topics.map((topic) => [topic, []])) });
    this.#hub = hub;
    this.#topics = topics;
    this.#random = random;
  }

  async publishSome() {
    const events = Array.from({ length: this.#random.between(1, 5) }, () => ({
      topic: this.#random.pick(this.#topics),
      type: "test.line",
      data: { line: "x".repeat(this.#random.between(0, 200)), break: "a\r\nb\n\ndata: c\n\nid: 0\n" },
    }));
    for (const { topic, id, offset } of await this.#hub.publish(events)) {
      this.acknowledged.get(topic).push({ id, offset });
      this.count += 1;
    }
  }

  // Until the condition holds, and never further ahead of the reader than a bound.
  async publishWhile(condition, follower, aheadMax = 400) {
    while (condition()) {
      await follower.until(
        () => this.count - follower.count < aheadMax || !condition(),
        () => `the reader to come after: ${this.count} published, ${follower.count} seen`,
      );
      await this.publishSome();
    }
  }

  // Every event exactly once, in the order of the topic.
  assertSeenBy(follower) {
    for (const [topic, events] of this.acknowledged) {
      const stored = events.toSorted((a, b) => a.offset - b.offset);
      assertSame(stored.map(({ offset }) => offset), stored.map((_, n) => n + 1), `offsets of ${topic}`);
      assertSame(follower.seen.get(topic) ?? [], stored.map(({ id }) => id), `events of ${topic}`);
    }
  }
}

// Tells where two long lists part instead of printing them.
function assertSame(actual, expected, what) {
  const at = expected.findIndex((one, n) => one !== actual[n]);
  assert.equal(at, -1, `${what}: number ${at + 1} is ${actual[at]}, not ${expected[at]}`);
  assert.equal(actual.length, expected.length, `${what}: ${actual.slice(expected.length)} came besides`);
}
