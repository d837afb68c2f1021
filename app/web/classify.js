// Classification: pictures in portions that a service takes, and their answers.

import {fillFeedback, labelForm} from "./feedback.js";
import {$, Problem, background, call, percent, persist, text} from "./service.js";

const MAX_TOP = 3;
const PORTION_FILES = 16;
const PORTION_BYTES = 15e6;
const BUSY = 429;
const PASSING = new Set([0, BUSY, 502, 503, 504]); // 502 and 504 are a proxy's, for a service that is away
const PICTURE_FAULTS = new Set([413, 415, 422]);
let turn = 0; // of what is classified: the answers to an earlier one are not shown any more

export async function classify(files) {
  const pictures = [...files];
  if (!pictures.length) return;
  const own = clearAnswers();
  try {
    await classifyAll(pictures, () => own === turn);
  } catch (error) {
    if (own === turn) throw withRest(error, pictures.length);
  } finally {
    if (own === turn) wait("");
    background(fillFeedback);
  }
}

export function droppedPictures({items, files}) {
  if ([...items].some((item) => item.webkitGetAsEntry()?.isDirectory)) {
    throw new Error("Pictures are dropped here. A folder of pictures to train on goes to 'Train your own'.");
  }
  return files;
}

/** Make room for other answers; gives the turn that they have. */
export function clearAnswers() {
  $("answers").replaceChildren();
  wait("");
  return ++turn;
}

function wait(hint) {
  $("classify").ariaBusy = String(hint !== "");
  $("waiting").textContent = hint;
  $("waiting").hidden = !hint;
}

/** An error that names the pictures without an answer, where others have theirs. */
function withRest(error, count) {
  const left = count - $("answers").children.length;
  if (left === 0 || left === count) return error;
  return new Problem(error.status, `${error.message}\nThe last ${left} of ${count} pictures are not classified.`);
}

async function classifyAll(pictures, wanted) {
  const model = $("model").value;
  let done = 0;
  const say = (hint) => wait(`Classifying: ${done} of ${pictures.length} done${hint}`);
  // Whoever is answered nothing at all is told why; later on, what passes costs nobody the rest of the answers.
  const passing = ({status}) => wanted() && (done ? PASSING.has(status) : status === BUSY);
  const insist = (action) => persist(() => wanted() && action(), passing, (error) => say(`. ${reasonOf(error)}`));
  for (const portion of portions(pictures)) {
    say("");
    const predictions = await insist(() => predict(portion, model));
    if (!wanted()) return;
    $("answers").append(...predictions.map((prediction, index) => answerItem(prediction, portion[index])));
    done += portion.length;
    // Pictures are stored a moment after their answer; whoever asks for one waits for that.
    const last = predictions.findLast(({id}) => id);
    if (last) await insist(() => call(`feedback/${last.id}/picture`));
    if (!wanted()) return;
  }
}

function reasonOf({status, message, retryMs}) {
  const reason = status === BUSY ? "The service is busy." : message;
  return `${reason} It is tried again every ${retryMs / 1000} seconds.`;
}

/** Pictures in requests that a service takes. */
function* portions(pictures) {
  let portion = [];
  let bytes = 0;
  for (const picture of pictures) {
    if (portion.length === PORTION_FILES || (portion.length && bytes + picture.size > PORTION_BYTES)) {
      yield portion;
      portion = [];
      bytes = 0;
    }
    portion.push(picture);
    bytes += picture.size;
  }
  yield portion;
}

async function predict(pictures, model) {
  const body = new FormData();
  for (const picture of pictures) body.append("file", picture, picture.name);
  const query = new URLSearchParams({top_k: MAX_TOP, ...(model && {model})});
  try {
    return (await (await call(`predict?${query}`, {method: "POST", body})).json()).predictions;
  } catch (error) {
    if (error.status === 0) await Promise.all(pictures.map(tryReading));
    if (!PICTURE_FAULTS.has(error.status)) throw error;
    if (pictures.length === 1) return [{error: {detail: error.message}}];
    if (error.status !== 413) throw error;
    // This service takes less at once than others.
    const half = pictures.length >> 1;
    return [...await predict(pictures.slice(0, half), model), ...await predict(pictures.slice(half), model)];
  }
}

/** A file that is gone or has changed breaks its request as an absent service does, and does so for good. */
async function tryReading(picture) {
  await picture.arrayBuffer().catch(() => {
    throw new Error(`${picture.name} cannot be read any more. Choose the pictures again.`);
  });
}

function answerItem({id, label, error, top = []}, picture) {
  const item = $("answer").content.cloneNode(true);
  const image = item.querySelector("img");
  image.src = URL.createObjectURL(picture);
  image.onload = image.onerror = () => URL.revokeObjectURL(image.src);
  item.querySelector("strong").textContent = label ?? "";
  item.querySelector(".file").textContent = picture.name;
  if (error) item.querySelector(".top").append(text("span", error.detail, "error"));
  for (const choice of top) {
    const row = document.createElement("span");
    const meter = document.createElement("meter");
    meter.value = choice.probability;
    row.append(meter, ` ${percent(choice.probability)} ${choice.label}`);
    item.querySelector(".top").append(row);
  }
  if (id) item.querySelector(".top").append(labelForm({id, label, filename: picture.name}));
  return item;
}
