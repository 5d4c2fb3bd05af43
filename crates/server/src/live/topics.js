// The topics that are followed, in the page's address, and those that could be.

import { askForToken, session } from "./credentials.js";
import { call } from "./hub.js";
import { $, element, page, setText } from "./page.js";

const TOPICS_MAX = 32; // of one connection
const LISTED_MAX = 200; // above it the prefix narrows
const REFRESH_MS = 15_000;
const TYPING_MS = 200;
const CLICKING_MS = 250; // several clicks in a row make one connection
const HUES = 8;

// Topic → its colour, what the hub said of it and how far the page is; in the order of choosing.
export const chosen = new Map();
let listed = []; // names that the hub has, as it last said
let dropped = () => {};
let changed = () => {};
let changing = 0;

// `onDrop(topic)` runs at once, `onChange()` when the choice has settled.
export function watchChoice({ onDrop, onChange }) {
  dropped = onDrop;
  changed = onChange;
}

export function choose(name) {
  const fault = topicFault(name);
  if (fault) return refuseTopic(`${fault} This is none: ${name.slice(0, 80)}`);
  if (chosen.has(name)) return;
  if (chosen.size === TOPICS_MAX) return refuseTopic(`One connection follows at most ${TOPICS_MAX} topics.`);
  const taken = new Set([...chosen.values()].map((topic) => topic.hue));
  const hue = [...Array(HUES).keys()].find((n) => !taken.has(n)) ?? chosen.size % HUES;
  chosen.set(name, { hue, earliest: 1, tail: 1, last: 0, caughtUp: false, drawn: null });
  $("publish-topic").value ||= name;
  choiceChanged();
}

function drop(name) {
  chosen.delete(name);
  dropped(name);
  choiceChanged();
}

function choiceChanged() {
  const query = [...chosen.keys()].map((name) => `topic=${encodeURIComponent(name).replaceAll("%2F", "/")}`);
  history.replaceState(null, "", location.pathname + (query.length ? `?${query.join("&")}` : ""));
  refuseTopic("");
  draw();
  clearTimeout(changing);
  changing = setTimeout(changed, CLICKING_MS);
}

// Shows why a topic was not taken; nothing to show takes the words away.
export function refuseTopic(why) {
  $("topic-error").textContent = why;
  $("topic-error").hidden = !why;
  $("topic").setAttribute("aria-invalid", String(Boolean(why)));
  if (!why) return;
  $("topics-panel").open = true;
  $("topic").focus();
}

// What is wrong with a topic's name, or nothing.
export function topicFault(name) {
  const segments = name.replace(/^\$/, "").split("/");
  const good = (segment) => /^[A-Za-z0-9._~:@-]{1,128}$/.test(segment) && segment !== "." && segment !== "..";
  if (name.length > 512 || segments.length > 16) return "A topic has at most 16 segments and 512 bytes.";
  return segments.every(good) ? "" : "A topic is segments of A-Z a-z 0-9 . _ ~ : @ - joined by /, such as build/1.";
}

export async function refreshTopics() {
  if (!session.token) return;
  try {
    const prefix = encodeURIComponent($("topic").value.trim());
    const { topics = [], next } = await call("GET", `v1/topics?prefix=${prefix}`, session.token);
    listed = topics.map(({ topic }) => topic).slice(0, LISTED_MAX);
    setText($("topics-note"), next || topics.length > LISTED_MAX ? "There are more: type how one begins." : "");
  } catch (problem) {
    setText($("topics-note"), problem.sentence ?? String(problem));
    if (problem.status === 401) askForToken(problem.sentence);
  }
  draw();
}

function draw() {
  const others = listed.filter((name) => !chosen.has(name));
  const focused = $("topics").contains(document.activeElement) ? document.activeElement.value : null;
  $("topics").replaceChildren(...[...chosen.keys(), ...others].map(item));
  if (focused !== null) [...$("topics").querySelectorAll("input")].find(({ value }) => value === focused)?.focus();
  $("known-topics").replaceChildren(...[...chosen.keys(), ...others].map((name) => {
    const option = element("option");
    option.value = name;
    return option;
  }));
  setText($("topics-count"), `${chosen.size} of ${TOPICS_MAX}`);
}

function item(name) {
  const topic = chosen.get(name);
  const made = element("li", topic ? `chosen hue-${topic.hue}` : "");
  made.dataset.testid = "topic";
  made.dataset.topic = name;
  const box = element("input");
  box.type = "checkbox";
  box.value = name;
  box.checked = Boolean(topic);
  box.addEventListener("change", () => (box.checked ? choose(name) : drop(name)));
  const words = element("span", "name", name);
  words.title = name;
  const label = element("label");
  label.append(box, words);
  made.append(label);
  if (topic) {
    topic.drawn = { place: element("span", "place"), bar: element("progress") };
    topic.drawn.bar.setAttribute("aria-label", `Replay of ${name}`);
    made.append(topic.drawn.place, topic.drawn.bar);
    drawPosition(topic);
  }
  return made;
}

// How far the page is in a topic; `tail` is the offset that the next event gets.
export function drawPosition({ drawn, earliest, tail, last, caughtUp }) {
  if (!drawn) return;
  const replaying = page.dataset.state === "live" && !caughtUp;
  const words = caughtUp ? `${last} · caught up` : replaying ? `${last} of ${Math.max(last, tail - 1)}` : last ? `${last}` : "";
  setText(drawn.place, words);
  drawn.place.classList.toggle("done", caughtUp);
  drawn.bar.hidden = !replaying;
  drawn.bar.max = Math.max(1, tail - earliest);
  drawn.bar.value = Math.max(0, last - earliest + 1);
}

$("topic-form").addEventListener("submit", (submit) => {
  submit.preventDefault();
  const name = $("topic").value.trim();
  choose(name);
  if (chosen.has(name)) $("topic").value = "";
});
let typing = 0;
$("topic").addEventListener("input", () => {
  refuseTopic("");
  clearTimeout(typing);
  typing = setTimeout(refreshTopics, TYPING_MS);
});
$("topics-refresh").addEventListener("click", refreshTopics);
setInterval(() => { if (!document.hidden) refreshTopics(); }, REFRESH_MS);
