// Corrections: a right label for a prediction, and the predictions that are most in need of one.

import {$, act, background, call, percent, text} from "./service.js";

const SHOWN = 12;
let turn = 0; // of what is asked for: what an earlier one finds, perhaps for another model, is not shown any more

/** Show what waits for a label; nothing at all where the service keeps no pictures. */
export async function fillFeedback() {
  const own = ++turn;
  const model = $("model").value;
  if (!model) return;
  try {
    const {models} = await (await call("feedback")).json();
    const kept = models.find(({name}) => name === model);
    const [{queue}, known] = await Promise.all([queueOf(model), classesOf(model)]);
    if (own === turn) show(queue, known, kept);
  } catch (error) {
    if (error.status !== 409) throw error; // it is off
  }
}

async function queueOf(model) {
  return (await call(`feedback/queue?${new URLSearchParams({model, limit: SHOWN})}`)).json();
}

async function classesOf(model) {
  const {serving} = await (await call(`models/${model}`)).json();
  return serving ? (await (await call(`models/${model}/versions/${serving}`)).json()).classes : [];
}

function show(queue, known, {unlabelled = 0, labels = {}} = {}) {
  const labelled = Object.values(labels).reduce((sum, count) => sum + count, 0);
  $("feedback").hidden = false;
  $("feedback-count").textContent = `${labelled} labelled, ${unlabelled} wait. The least certain come first.`;
  $("learn").disabled = !labelled;
  $("learn").dataset.labels = JSON.stringify(labels);
  showQueue(queue);
  $("classes").replaceChildren(...[...new Set([...known, ...Object.keys(labels)])].map((name) => new Option(name)));
}

/** Show the queue around the items that stay, so that what is being typed there stays too. */
function showQueue(queue) {
  const shown = new Map([...$("queue").children].map((item) => [item.dataset.id, item]));
  const items = queue.map((prediction) => shown.get(prediction.id) ?? queueItem(prediction));
  for (const item of shown.values()) if (!items.includes(item)) item.remove();
  items.forEach((item, place) => {
    const there = $("queue").children[place] ?? null;
    if (item !== there) $("queue").insertBefore(item, there);
  });
}

/** What tells a prediction from others to those who do not see its picture. */
const nameOf = ({label, filename}) => `${filename ?? "a picture"}, taken for ${label}`;

/** A field for the right label of a prediction. */
export function labelForm(prediction) {
  const form = $("label").content.cloneNode(true).firstElementChild;
  form.querySelector("input").ariaLabel = `right label of ${nameOf(prediction)}`;
  form.querySelector("button").ariaLabel = `Save the right label of ${nameOf(prediction)}`;
  form.onsubmit = (event) => {
    event.preventDefault();
    const inQueue = form.closest("#queue");
    act(async () => {
      const body = JSON.stringify({id: prediction.id, label: new FormData(form).get("label")});
      const answer = await call("feedback", {method: "POST", headers: {"content-type": "application/json"}, body});
      form.replaceWith(text("span", `right label: ${(await answer.json()).label}`));
      await fillFeedback();
      if (inQueue) $("queue").querySelector("input")?.focus(); // so that a name and Enter label one after another
    });
  };
  return form;
}

function queueItem(prediction) {
  const {id, label, probability, filename} = prediction;
  const item = $("answer").content.cloneNode(true).firstElementChild;
  item.dataset.id = id;
  item.querySelector("strong").textContent = `${label}?`;
  item.querySelector(".file").textContent = `${percent(probability)} ${filename ?? ""}`;
  const forget = text("button", "Forget", "forget");
  forget.ariaLabel = `Forget ${nameOf(prediction)}`;
  forget.onclick = () => act(async () => {
    const place = [...$("queue").children].indexOf(forget.closest("li"));
    await call(`feedback/${id}`, {method: "DELETE"});
    await fillFeedback();
    const buttons = [...$("queue").querySelectorAll(".forget")];
    (buttons[place] ?? buttons.at(-1) ?? $("feedback-title")).focus();
  });
  item.querySelector(".top").append(labelForm(prediction), forget);
  background(() => showPicture(item.querySelector("img"), id));
  return item;
}

/** An address in the page cannot send the key, so the picture is fetched. */
async function showPicture(image, id) {
  image.src = URL.createObjectURL(await (await call(`feedback/${id}/picture`)).blob());
  image.onload = image.onerror = () => URL.revokeObjectURL(image.src);
}
