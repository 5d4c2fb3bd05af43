// Waiting for a condition without sleeping: whoever changes something says so, and the condition is
// looked at again.
//
// The rule: every wait has a bound, and a wait that fails says what it waited for.

const WAIT_MS = 30_000; // generous: the machine may be building something else

export class Watch {
  #waiting = new Set();

  // Something may have changed.
  notify() {
    for (const look of [...this.#waiting]) look();
  }

  // Resolves with the first truthy value of `condition`; rejects with the words of `what()`.
  until(condition, what, withinMs = WAIT_MS) {
    return new Promise((resolve, reject) => {
      const finish = (settle, value) => {
        clearTimeout(bound);
        this.#waiting.delete(look);
        settle(value);
      };
      const look = () => {
        try {
          const value = condition();
          if (value) finish(resolve, value);
        } catch (error) {
          finish(reject, error);
        }
      };
      const bound = setTimeout(() => finish(reject, new Error(`waited ${withinMs} ms for ${what()}`)), withinMs);
      this.#waiting.add(look);
      look();
    });
  }
}
