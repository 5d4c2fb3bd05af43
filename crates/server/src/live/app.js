// The live page: follows topics with the browser's own EventSource and shows what the hub says.
//
// The rule: no build step, nothing from elsewhere, nothing inline, so that the strictest content
// security policy holds. This file only joins the parts: credentials, topics, connection, rows.

import { choiceChanged, follow, forget, stop } from "./connection.js";
import { askForToken, onToken, session, takeCredentials } from "./credentials.js";
import { $, active } from "./page.js";
import "./publish.js";
import { clear, pause, toNewest } from "./rows.js";
import { choose, chosen, refreshTopics, watchChoice } from "./topics.js";

const SHORTCUTS = {
  "t": () => open("topics-panel", "topic"),
  "n": () => open("publish-panel", "publish-data"),
  "/": () => $("filter").focus(),
  "e": toNewest,
  "p": pause,
  "c": clear,
  "?": () => $("help").showModal(),
};

function open(panel, field) {
  $(panel).open = true;
  $(field).focus();
}

addEventListener("keydown", (press) => {
  const typing = press.target.matches("input:not([type=checkbox]), textarea");
  if (press.key === "Escape" && typing) return press.target.blur();
  const act = SHORTCUTS[press.key];
  const modified = press.ctrlKey || press.altKey || press.metaKey;
  if (!act || typing || modified || $("help").open || !$("shortcuts").checked) return;
  press.preventDefault();
  act();
});

// Single keys disturb speech input, so they can be turned off (WCAG 2.1.4).
$("shortcuts").checked = localStorage.getItem("tidings.shortcuts") !== "off";
$("shortcuts").addEventListener("change", () => {
  localStorage.setItem("tidings.shortcuts", $("shortcuts").checked ? "on" : "off");
});
$("help-open").addEventListener("click", () => $("help").showModal());
$("follow").addEventListener("click", () => (active() ? stop() : follow()));

function begin() {
  refreshTopics();
  if (chosen.size) follow();
}

// On a small screen the events come before the form.
$("publish-panel").open = !matchMedia("(max-width: 860px)").matches;
takeCredentials();
onToken(begin);
new URLSearchParams(location.search).getAll("topic").forEach(choose);
watchChoice({ onDrop: forget, onChange: choiceChanged });
if (session.token) begin();
else askForToken("");
