// The reader token and the publisher key, from the link that `tidings dev` printed.
//
// The rule: they live in this tab's sessionStorage and in request headers, never in an address.

import { $ } from "./page.js";

export const session = {
  get token() { return sessionStorage.getItem("tidings.token") ?? ""; },
  set token(text) { sessionStorage.setItem("tidings.token", text); },
  get key() { return sessionStorage.getItem("tidings.key") ?? ""; },
  set key(text) { sessionStorage.setItem("tidings.key", text); },
};

// The fragment never reaches a server; the address bar and the history shall not keep it either.
export function takeCredentials() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (!given.has("token") && !given.has("key")) return false;
  if (given.get("token")) session.token = given.get("token");
  if (given.get("key")) session.key = given.get("key");
  history.replaceState(null, "", location.pathname + location.search);
  return true;
}

export function askForToken(why) {
  if (why) $("token-why").textContent = why;
  // Asked once: what is typed elsewhere meanwhile keeps the focus.
  if (!$("token-form").hidden) return;
  $("token-form").hidden = false;
  $("token").focus();
}

export function onToken(act) {
  $("token-form").addEventListener("submit", (submit) => {
    submit.preventDefault();
    const token = $("token").value.trim();
    if (!token) return;
    session.token = token;
    $("token").value = "";
    $("token-form").hidden = true;
    act();
  });
  // Another reader link opened in this tab changes the fragment alone.
  addEventListener("hashchange", () => {
    if (!takeCredentials()) return;
    $("token-form").hidden = true;
    act();
  });
}
