// Chance that can be repeated: a test prints its seed, TIDINGS_SEED brings it back.

export const seed = Number(process.env.TIDINGS_SEED ?? Math.floor(Math.random() * 2 ** 32)) >>> 0;

// mulberry32: small, and good enough to choose where to cut.
export class Random {
  #state;

  constructor(from = seed) {
    this.#state = from >>> 0;
  }

  // In 0..1.
  next() {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  }

  // A whole number in low..=high.
  between(low, high) {
    return low + Math.floor(this.next() * (high - low + 1));
  }

  pick(list) {
    return list[this.between(0, list.length - 1)];
  }
}
