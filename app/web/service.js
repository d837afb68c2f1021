// What the parts of the page share: calls to the service, and what is said when one fails.

export const $ = (id) => document.getElementById(id);
export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

export class Problem extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function headers() {
  const key = sessionStorage.getItem("key");
  return key ? {authorization: `Bearer ${key}`} : {};
}

/** No answer at all, and so status 0. */
export const unreachable = () => new Problem(0, "The service cannot be reached. Is it running?");

export async function call(path, options = {}) {
  const sent = fetch(path, {...options, headers: {...headers(), ...options.headers}});
  const answer = await sent.catch(() => { throw unreachable(); });
  if (answer.ok) return answer;
  throw new Problem(answer.status, explain(answer.status, await answer.text()));
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

/** Run what the user has begun; what goes wrong is said at the top of the page. */
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
