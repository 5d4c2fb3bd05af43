// Checks the hub's promise from outside: offsets of a topic ascend, and a hole among them was told.
//
// Offsets are dense, so a missing one is a superseded state or a loss. What superseded a state stands
// behind it, so a later state explains a hole; once the hub says that everything was sent, a hole that
// nothing explained is a fault. After a reset a topic goes on from wherever its history now begins.

import { plural } from "./page.js";

export class Continuity {
  gapsTold = 0;
  #faults = 0;
  #topics = new Map();

  // Where the page is in a topic: epoch, last offset, told gaps ahead of it, holes behind it, and
  // whether it knows where the history begins.
  of(topic) {
    if (!this.#topics.has(topic)) this.#topics.set(topic, { epoch: "", last: 0, told: [], holes: [], begun: true });
    return this.#topics.get(topic);
  }

  forget(topic) {
    this.#topics.delete(topic);
  }

  // Takes an event's `position` and returns what is wrong with it, or nothing.
  event(topic, position, isState) {
    const cut = position.lastIndexOf("-");
    const [epoch, offset] = [position.slice(0, cut), Number(position.slice(cut + 1))];
    const at = this.of(topic);
    if (at.epoch && at.epoch !== epoch) {
      Object.assign(at, { epoch, last: offset, told: [], holes: [], begun: true });
      return this.#fault(`${topic} went on in another epoch, and no gap said so.`);
    }
    at.epoch = epoch;
    if (offset === at.last) return this.#fault(`${topic} offset ${offset} came twice.`);
    if (offset < at.last) return this.#fault(`${topic} offset ${offset} came after ${at.last}.`);
    if (isState) at.holes = [];
    else if (at.begun) at.holes.push(...untold(at.last + 1, offset - 1, at.told));
    // States outlive the log before them, so only an event of the log says where it begins.
    at.begun ||= !isState;
    at.told = at.told.filter(([, to]) => to > offset);
    at.last = offset;
    return "";
  }

  // A new history, or a position that means nothing, starts the topic over.
  gap({ topic, reason, from, to }) {
    this.gapsTold += 1;
    const at = this.of(topic);
    if (reason === "epoch" || reason === "unknown_cursor") {
      Object.assign(at, { epoch: "", last: 0, told: [], holes: [], begun: false });
    }
    if (Number.isFinite(from) && Number.isFinite(to)) at.told.push([from, to]);
  }

  // Everything up to now was sent: returns a fault for every hole that is still open.
  settle(topics = [...this.#topics.keys()]) {
    return topics.flatMap((topic) => this.of(topic).holes.splice(0).map(([from, to]) =>
      this.#fault(`${topic} lost offsets ${from} to ${to}, and no gap said so.`)));
  }

  #fault(text) {
    this.#faults += 1;
    return text;
  }

  // The word for tests and styles, and the words for people.
  get verdict() {
    if (this.#faults) return ["broken", `continuity: broken, ${plural(this.#faults, "fault")}`];
    if (this.gapsTold) return ["gaps", `continuity: ${plural(this.gapsTold, "gap")} told`];
    return this.#topics.size ? ["exact", "continuity: exact"] : ["none", "continuity: nothing yet"];
  }
}

// The parts of from..=to that no told gap covers.
function untold(from, to, told) {
  const outside = ([low, high]) => ([a, b]) => [[a, Math.min(b, low - 1)], [Math.max(a, high + 1), b]];
  const some = ([a, b]) => a <= b;
  return told.reduce((parts, gap) => parts.flatMap(outside(gap)).filter(some), [[from, to]].filter(some));
}
