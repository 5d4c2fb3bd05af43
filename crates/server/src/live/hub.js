// Requests to the hub, and the problems that it answers (RFC 9457).

export class Problem extends Error {
  constructor(body, status) {
    super(body.title ?? `The hub answered ${status}`);
    this.status = status;
    this.detail = body.detail ?? "";
    this.pointer = body.pointer ?? "";
    this.errors = Array.isArray(body.errors) ? body.errors : [];
    this.requestId = body.request_id ?? "";
    this.retryable = body.retryable ?? (status === 0 || status === 429 || status >= 500);
    this.retryAfterMs = body.retry_after_ms ?? 0;
  }

  get sentence() {
    return this.detail ? `${this.message}: ${this.detail}` : this.message;
  }
}

export async function call(method, path, credential, body) {
  const headers = { Authorization: `Bearer ${credential}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body, cache: "no-store", credentials: "omit" });
  } catch {
    throw new Problem({ title: "the hub cannot be reached" }, 0);
  }
  const answer = (await response.json().catch(() => null)) ?? {};
  if (!response.ok) throw new Problem(answer, response.status);
  return answer;
}
