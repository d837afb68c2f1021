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

export async function call(path, options = {}) {
  const answer = await fetch(path, {...options, headers: {...headers(), ...options.headers}});
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
  if (error.status === 401) $("key").hidden = false;
  $("problem").textContent = error.message;
  $("problem").hidden = false;
}

/** Run an action of the user's; what goes wrong is said at the top of the page. */
export async function act(action) {
  $("problem").hidden = true;
  try {
    await action();
  } catch (error) {
    show(error);
  }
}

export function text(tag, content, className = "") {
  const element = document.createElement(tag);
  element.textContent = content;
  element.className = className;
  return element;
}
