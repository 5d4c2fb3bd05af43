// Elements, texts and the page's state: what every other part of the live page draws with.
//
// The rule: what comes over the network reaches the document as text, never as markup.

export const page = document.documentElement;
export const $ = (id) => document.getElementById(id);

const STATES = {
  idle: "Not connected",
  connecting: "Connecting",
  live: "Live",
  waiting: "Waiting to reconnect",
  ended: "Ended",
};

export function setState(state, detail) {
  const before = page.dataset.state;
  page.dataset.state = state;
  setText($("state-name"), STATES[state]);
  setText($("state-detail"), detail);
  setText($("follow"), active() ? "Stop" : "Follow");
  if (state !== before) announce(`${STATES[state]}, ${detail}`);
}

// Whether the page follows, or tries to.
export function active() {
  return ["connecting", "live", "waiting"].includes(page.dataset.state);
}

// Says it to a screen reader; only what changes rarely, or it would never stop talking.
export function announce(text) {
  $("announcer").textContent = text;
}

export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== "" && text !== undefined && text !== null) made.textContent = visible(String(text));
  return made;
}

export function setText(of, text) {
  if (of.textContent !== text) of.textContent = text;
}

// Control characters and those that turn the writing direction show as what they are.
export function visible(text, keep = "") {
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, (character) => {
    const code = character.codePointAt(0);
    if (keep.includes(character)) return character;
    return code < 0x20 ? String.fromCodePoint(0x2400 + code) : code === 0x7f ? "\u2421" : "\ufffd";
  });
}

export function parsed(text) {
  try {
    const value = JSON.parse(text);
    return value !== null && typeof value === "object" ? value : {};
  } catch {
    return {};
  }
}

export function clockOf(time) {
  const at = new Date(time);
  if (Number.isNaN(at.getTime())) return "--:--:--.---";
  const two = (n) => String(n).padStart(2, "0");
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}.${String(at.getMilliseconds()).padStart(3, "0")}`;
}

export function seconds(ms) {
  return `${(ms / 1000).toFixed(1)} s`;
}

export function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

export function randomHex(bytes) {
  return [...crypto.getRandomValues(new Uint8Array(bytes))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
