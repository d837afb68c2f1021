// Corrections: a right label for a prediction, and the predictions that are most in need of one.

import {$, act, background, call, percent, text} from "./service.js";

const SHOWN = 12;

/** Show what waits for a label; nothing at all where the service keeps no pictures. */
export async function fillFeedback() {
  const model = $("model").value;
  if (!model) return;
  let kept;
  try {
    kept = await (await call("feedback")).json();
  } catch (error) {
    if (error.status !== 409) throw error;
    return; // it is off
  }
  const {unlabelled = 0, labels = {}} = kept.models.find(({name}) => name === model) ?? {};
  const labelled = Object.values(labels).reduce((sum, count) => sum + count, 0);
  $("feedback").hidden = false;
  $("feedback-count").textContent = `${labelled} labelled, ${unlabelled} wait. The least certain come first.`;
  $("learn").disabled = !labelled;
  $("learn").dataset.labels = JSON.stringify(labels);
  const {queue} = await (await call(`feedback/queue?${new URLSearchParams({model, limit: SHOWN})}`)).json();
  $("queue").replaceChildren(...queue.map(queueItem));
  await fillClasses(model, Object.keys(labels));
}

/** What the model knows, and what it was told beyond that, to choose from. */
async function fillClasses(model, labels) {
  const {serving} = await (await call(`models/${model}`)).json();
  const known = serving ? (await (await call(`models/${model}/versions/${serving}`)).json()).classes : [];
  $("classes").replaceChildren(...[...new Set([...known, ...labels])].map((name) => new Option(name)));
}

/** A field for the right label of a prediction. */
export function labelForm(id) {
  const form = $("label").content.cloneNode(true).firstElementChild;
  form.onsubmit = (event) => {
    event.preventDefault();
    const inQueue = form.closest("#queue");
    act(async () => {
      const body = JSON.stringify({id, label: new FormData(form).get("label")});
      const answer = await call("feedback", {method: "POST", headers: {"content-type": "application/json"}, body});
      form.replaceWith(text("span", `right label: ${(await answer.json()).label}`));
      await fillFeedback();
      if (inQueue) $("queue").querySelector("input")?.focus(); // so that a name and Enter label one after another
    });
  };
  return form;
}

function queueItem({id, label, probability, filename}) {
  const item = $("answer").content.cloneNode(true);
  item.querySelector("strong").textContent = `${label}?`;
  item.querySelector(".file").textContent = `${percent(probability)} ${filename ?? ""}`;
  const forget = text("button", "Forget", "forget");
  forget.onclick = () => act(async () => {
    await call(`feedback/${id}`, {method: "DELETE"});
    await fillFeedback();
  });
  item.querySelector(".top").append(labelForm(id), forget);
  background(() => showPicture(item.querySelector("img"), id));
  return item;
}

/** An address in the page cannot send the key, so the picture is fetched. */
async function showPicture(image, id) {
  image.src = URL.createObjectURL(await (await call(`feedback/${id}/picture`)).blob());
  image.onload = image.onerror = () => URL.revokeObjectURL(image.src);
}
