// The form that publishes a test event.

import { session } from "./credentials.js";
import { call, Problem } from "./hub.js";
import { $, element, randomHex, seconds } from "./page.js";
import { refreshTopics, topicFault } from "./topics.js";

// The id is the page's own and stays until an answer came: pressing Publish again after a broken
// connection stores nothing twice.
let unanswered = { said: "", id: "" };

async function publish() {
  const [topic, type, key] = ["publish-topic", "publish-type", "publish-key"].map((id) => $(id).value.trim());
  const data = $("publish-data").value.trim() || "null";
  markField("");
  const fault = topicFault(topic);
  if (fault) return publishRefused({ message: fault, pointer: "/topic" });
  try {
    JSON.parse(data);
  } catch (error) {
    return publishRefused({ message: "Data is not JSON", detail: error.message, pointer: "/data" });
  }
  const credential = session.key || $("publisher-key").value.trim();
  if (!credential) {
    $("publish-key-field").hidden = false;
    $("publisher-key").focus();
    return publishRefused({ message: "Publishing needs the publisher key that `tidings dev` printed." });
  }
  const said = JSON.stringify([topic, type, key, data]);
  if (unanswered.said !== said) unanswered = { said, id: `live-${randomHex(16)}` };
  const head = { topic, type, id: unanswered.id, ...(key && { class: "state", key }) };
  // The text goes as it was typed: parsing would change long numbers.
  const body = `${JSON.stringify(head).slice(0, -1)},"data":${data}}`;
  $("publish-result").replaceChildren(element("p", "dim", "Publishing …"));
  try {
    const { results: [result] } = await call("POST", "v1/events", credential, body);
    if (result.error) throw new Problem(result.error, result.error.status ?? 400);
    unanswered = { said: "", id: "" };
    session.key = credential;
    $("publish-key-field").hidden = true;
    const stored = element("p", "done", result.offset ? `Stored in ${topic} at offset ${result.offset}.` : `Sent to ${topic}.`);
    stored.dataset.testid = "publish-stored";
    $("publish-result").replaceChildren(stored);
    refreshTopics();
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    if (problem.status === 401 || problem.status === 403) $("publish-key-field").hidden = false;
    if (problem.status !== 0) unanswered = { said: "", id: "" };
    publishRefused(problem);
  }
}

function publishRefused({ message, detail = "", errors = [], pointer = "", requestId = "", retryAfterMs = 0 }) {
  const box = element("div", "refusal");
  box.dataset.testid = "publish-problem";
  box.append(element("p", "error", message));
  if (detail) box.append(element("p", "", detail));
  for (const { pointer: at, detail: what } of errors) box.append(element("p", "", `${at ?? ""} ${what ?? ""}`));
  if (retryAfterMs) box.append(element("p", "", `Try again in ${seconds(retryAfterMs)}.`));
  if (requestId) box.append(element("p", "dim", `request ${requestId}`));
  $("publish-result").replaceChildren(box);
  markField(pointer || errors[0]?.pointer || "");
}

function markField(pointer) {
  const name = /(topic|type|key|data)/.exec(pointer)?.[1];
  for (const field of ["topic", "type", "key", "data"]) {
    $(`publish-${field}`).setAttribute("aria-invalid", String(field === name));
  }
  if (name) $(`publish-${name}`).focus();
}

$("publish").addEventListener("submit", (submit) => {
  submit.preventDefault();
  publish();
});
$("publish").addEventListener("keydown", (press) => {
  if (press.key === "Enter" && (press.ctrlKey || press.metaKey)) {
    press.preventDefault();
    publish();
  }
});
