// What the parts of the page share: calls to the service, and what is said when one fails.

export const $ = (id) => document.getElementById(id);
export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

const RETRY_MS = 2000;
const KEY = /^[\x21-\x7e]+$/; // fetch sends nothing at all where a header holds others

export class Problem extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryMs = 1000 * retryAfter || RETRY_MS; // a proxy may give a date (RFC 9110, section 10.2.3)
  }
}

/** Keep a key for this tab, as it was typed. */
export function storeKey(typed) {
  const key = typed.trim();
  if (!KEY.test(key)) {
    throw new Error("A key has no spaces and no characters beyond ASCII, not even invisible ones. Type it.");
  }
  sessionStorage.setItem("key", key);
}

/** The key that was given in this tab; empty if none was. */
export function storedKey() {
  const key = sessionStorage.getItem("key") ?? "";
  return KEY.test(key) ? key : "";
}

export function headers() {
  const key = storedKey();
  return key ? {authorization: `Bearer ${key}`} : {};
}

/** No answer at all, and so status 0. */
export const unreachable = () => new Problem(0, "The service cannot be reached. Is it running?");

export async function call(path, options = {}) {
  const sent = fetch(path, {...options, headers: {...headers(), ...options.headers}});
  const answer = await sent.catch(() => { throw unreachable(); });
  if (answer.ok) return answer;
  throw new Problem(answer.status, explain(answer.status, await answer.text()), answer.headers.get("retry-after"));
}

/** Try again until it is done, and give what came of it; only what is not `passing` is an error. */
export async function persist(action, passing, say) {
  for (;;) {
    try {
      return await action();
    } catch (error) {
      if (!passing(error)) throw error;
      say(error);
      await new Promise((resolve) => setTimeout(resolve, error.retryMs));
    }
  }
}

export function explain(status, text) {
  try {
    return failure(JSON.parse(text));
  } catch {
    return `The service answered ${status}.`;
  }
}

/** What went wrong, a problem of the data a line. */
export function failure({detail, errors = []}) {
  return errors.length ? errors.map((each) => each.detail ?? each).join("\n") : detail;
}

function show(error) {
  $("problem").textContent = error.message;
  $("problem").hidden = false;
}

/** Run what the user has begun; what goes wrong is said over whatever part of the page is seen. */
export async function act(action) {
  $("problem").hidden = true;
  await attempt(action, show);
}

/** Run what the page has begun by itself; what it says never takes the place of what the user has to read. */
export async function background(action) {
  await attempt(action, (error) => { if ($("problem").hidden) show(error); });
}

async function attempt(action, failed) {
  try {
    await action();
  } catch (error) {
    if (error.status === 401) $("key").hidden = false;
    failed(error);
  }
}

export function text(tag, content, className = "") {
  const element = document.createElement(tag);
  element.textContent = content;
  element.className = className;
  return element;
}
