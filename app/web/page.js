import {classify, clearAnswers, droppedPictures} from "./classify.js";
import {fillFeedback} from "./feedback.js";
import {
  $, Problem, act, background, call, explain, failure, headers, percent, persist, storeKey, text,
} from "./service.js";
import {pack} from "./tar.js";

const ENDED = new Set(["succeeded", "failed", "cancelled"]);
const HIDDEN_FILE = /(^|\/)(\.|__MACOSX\/|Thumbs\.db$|desktop\.ini$)/i;
const PICTURE_FILE = /\.(jpe?g|jpe|jfif|png|webp|gif|bmp)$/i;
const CIFAR_FILE = /(^|\/)(data_batch_[1-5]|test_batch)(\.bin)?$/;
const POLL_MS = 1000;
const states = new Map(); // by id of a job: what is shown of it
const unfinished = new Set(); // ids of jobs
let ends = 0; // jobs that were seen to end
let endsShown = 0; // how many of them the models on the page are newer than
let watching = false;
let turn = 0; // of what is asked for: what an earlier one finds is not shown any more
const pending = new Map(); // by what is trained on: what the service has not accepted yet

async function refresh() {
  const own = ++turn;
  const {models} = await (await call("models")).json();
  if (own !== turn) return;
  const usable = models.filter((model) => model.aliases.production !== null);
  fillSelect($("model"), usable.map(({name}) => new Option(name)), usable.find((model) => model.default)?.name);
  fillSelect($("base"), [new Option("what fits", ""), ...usable.map(({name}) => new Option(name))], "");
  await Promise.all([fillModels(models, () => own === turn), fillJobs(), fillFeedback()]);
}

function fillSelect(select, options, preferred) {
  const before = select.value || preferred;
  select.replaceChildren(...options);
  if (options.some((option) => option.value === before)) select.value = before;
}

/** The files of the chosen folder that are worth sending, with the folder's own name in front. */
function chosenFiles() {
  return [...$("folder").files]
    .map((file) => ({path: file.webkitRelativePath || file.name, file}))
    .filter(({path}) => !HIDDEN_FILE.test(path));
}

/** The folders below the chosen one that hold pictures. */
function pictureFolders(files) {
  const pictures = files.filter(({path}) => PICTURE_FILE.test(path));
  return [...new Set(pictures.map(({path}) => path.split("/").slice(1, -1).join("/")).filter(Boolean))].sort();
}

/** What is wrong with a choice however the service reads its folders; the service sees the rest. */
function faultOf(files) {
  const folders = pictureFolders(files);
  if (folders.length > 1 || files.some(({path}) => CIFAR_FILE.test(path))) return "";
  const found = folders.length ? `Only ${folders[0]} holds pictures` : "No folder in the chosen one holds pictures";
  return `${found}. Choose a folder that holds one folder of pictures for each class, of two classes or more.`;
}

function describeChoice() {
  const files = chosenFiles();
  $("folder-chosen").textContent = files.length
    ? faultOf(files) || `${files.length} files in ${pictureFolders(files).join(", ") || "CIFAR-10's format"}`
    : "Choose a folder that holds one folder of pictures for each class";
}

async function submit(form) {
  const files = chosenFiles();
  if (!files.length) throw new Error("Choose a folder of pictures first.");
  const fault = faultOf(files);
  if (fault) throw new Error(fault);
  const body = new FormData(form);
  if (!body.get("base")) body.delete("base");
  const content = [...body, ...files.map(({path, file}) => [path, file.size, file.lastModified])];
  body.append("dataset", pack(files), `${body.get("name")}.tar`);
  await begin("folder", body, content).catch(async (error) => {
    if (error.status === 0) await tryReading(files);
    throw error;
  });
  form.reset();
  describeChoice();
}

/** A file that is gone or has changed breaks the request as an absent service does, and does so for good. */
async function tryReading(files) {
  await Promise.all(files.map(({path, file}) => file.slice(0, 1).arrayBuffer().catch(() => {
    throw new Error(`${path} cannot be read any more. Choose the folder again.`);
  })));
}

/** Train the chosen model on the labels that it was given. */
async function learn() {
  const body = new FormData();
  body.append("dataset", "feedback");
  body.append("name", $("model").value);
  await begin("feedback", body, [...body, $("learn").dataset.labels]);
}

async function begin(kind, body, content) {
  const key = keyFor(kind, JSON.stringify(content));
  const focused = document.activeElement;
  allowSending(false);
  try {
    const job = await send("finetune", body, key);
    pending.delete(kind);
    itemOf(job);
    unfinished.add(job.id);
    background(watch);
  } finally {
    allowSending(true);
    // What is disabled loses the focus.
    if (document.activeElement === document.body) focused.focus({preventScroll: true});
  }
}

/** The same until the content is known to be accepted: sent again when the connection broke, it must train once. */
function keyFor(kind, content) {
  if (pending.get(kind)?.content !== content) {
    pending.set(kind, {content, key: [...crypto.getRandomValues(new Uint32Array(4))].join("-")});
  }
  return pending.get(kind).key;
}

function allowSending(allowed) {
  for (const fields of document.querySelectorAll(".sends")) fields.disabled = !allowed;
}

/** POST with a bar for what has been sent, which fetch cannot report. */
function send(path, body, key) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.setRequestHeader("idempotency-key", key);
    request.upload.onprogress = (event) => Object.assign($("sent"), {hidden: false, value: event.loaded / event.total});
    request.onerror = () => reject(new Problem(0, "The connection to the service broke. Try again."));
    request.onload = () => {
      if (request.status === 202) resolve(JSON.parse(request.responseText));
      else reject(new Problem(request.status, explain(request.status, request.responseText)));
    };
    request.onloadend = () => { $("sent").hidden = true; };
    request.send(body);
  });
}

async function fillJobs() {
  const asked = [...unfinished];
  const {jobs} = await (await call("finetune?limit=100")).json();
  const listed = new Set(jobs.map(({id}) => id));
  for (const id of asked) if (!listed.has(id)) unfinished.delete(id);
  for (const job of [...jobs].reverse()) showJob(job);
  background(watch);
}

function itemOf(job) {
  const shown = document.querySelector(`#jobs [data-id="${CSS.escape(job.id)}"]`);
  if (shown) return shown;
  $("jobs").prepend($("job").content.cloneNode(true));
  const item = $("jobs").firstElementChild;
  item.dataset.id = job.id;
  item.querySelector(".cancel").onclick = () => act(() => call(`finetune/${job.id}`, {method: "DELETE"}));
  return item;
}

function showJob(job) {
  const ended = ENDED.has(job.status);
  if (!ended) unfinished.add(job.id);
  else if (unfinished.delete(job.id)) ends += 1;
  const state = JSON.stringify(job);
  if (states.get(job.id) === state) return; // what is written anew may be read aloud anew
  states.set(job.id, state);
  const item = itemOf(job);
  const {epoch, epochs} = job.progress;
  item.querySelector(".name").textContent = job.name ?? "";
  item.querySelector(".status").textContent = job.status;
  item.querySelector(".cancel").hidden = ended;
  const bar = item.querySelector("progress");
  bar.hidden = ended;
  bar.value = epochs ? epoch / epochs : 0;
  const detail = item.querySelector(".detail");
  detail.classList.toggle("error", job.status === "failed");
  detail.textContent = detailOf(job);
  item.querySelector(".warnings").textContent = job.warnings.join("\n");
}

function detailOf({status, progress, result, error}) {
  if (error) return failure(error);
  if (result) return `Version ${result.version}. ${result.reason}`;
  if (ENDED.has(status)) return "";
  const {epoch, epochs, val_accuracy: accuracy, eta_seconds: eta} = progress;
  return [
    epochs && `epoch ${epoch} of ${epochs}`,
    accuracy != null && `${percent(accuracy)} right so far`,
    eta != null && `about ${Math.max(1, Math.round(eta / 60))} min left`,
  ].filter(Boolean).join(", ");
}

/** Show the jobs until all have ended, and then what came of them, also when the service is away in between.
 *
 * They are asked for together: a browser has six connections to a service, and a stream for each job would take them.
 */
async function watch() {
  if (watching) return;
  watching = true;
  try {
    while (unfinished.size || endsShown < ends) {
      await outlast(poll);
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  } finally {
    watching = false;
  }
}

async function poll() {
  await fillJobs();
  const seen = ends;
  if (endsShown === seen) return;
  await refresh();
  endsShown = seen;
}

/** Persist while the service is away or busy, and say so. */
async function outlast(action) {
  const passing = ({status}) => status === 0 || status === 429 || status >= 500;
  try {
    await persist(action, passing, ({message, retryMs}) => {
      $("away").textContent = `${message} It is tried again every ${retryMs / 1000} seconds.`;
      $("away").hidden = false;
    });
  } finally {
    $("away").hidden = true;
  }
}

async function fillModels(models, wanted) {
  const cards = await Promise.all(models.map(modelCard));
  if (!wanted()) return;
  const {value, parentElement} = document.activeElement;
  const name = parentElement?.closest("#models article")?.dataset.model;
  $("models").replaceChildren(...cards);
  if (name) focusIn($("models").querySelector(`[data-model="${CSS.escape(name)}"]`), value);
}

/** Put the focus, which what is replaced loses, on the same button of a model, or on its name where that is gone. */
function focusIn(card, value) {
  const button = card?.querySelector(`button[value="${value}"]:not([hidden])`);
  (button ?? card?.querySelector("h3"))?.focus({preventScroll: true});
}

async function modelCard(model) {
  const card = $("model-card").content.cloneNode(true);
  card.querySelector("article").dataset.model = model.name;
  card.querySelector("h3").textContent = model.name;
  card.querySelector(".note").textContent = model.error ?? "";
  const rows = await Promise.all([...model.versions].reverse().map((version) => versionRow(model, version)));
  card.querySelector("tbody").append(...rows);
  const back = card.querySelector(".rollback");
  back.hidden = model.aliases.history.length < 2;
  back.onclick = () => act(async () => {
    await call(`models/${model.name}/rollback`, {method: "POST"});
    await refresh();
  });
  return card;
}

async function versionRow(model, version) {
  const row = document.createElement("tr");
  row.append(text("td", version));
  try {
    const manifest = await (await call(`models/${model.name}/versions/${version}`)).json();
    const test = manifest.metrics.test;
    row.append(text("td", test ? `${percent(test.accuracy)} of ${test.count}` : "not measured"));
    row.append(text("td", new Date(manifest.created).toLocaleString()));
  } catch (error) {
    row.append(text("td", error.message, "error"), text("td", ""));
  }
  row.append(version === model.aliases.production ? text("td", "in production") : promoteCell(model, version));
  return row;
}

function promoteCell(model, version) {
  const cell = document.createElement("td");
  const button = text("button", "Promote");
  button.value = version;
  button.onclick = () => act(async () => {
    await call(`models/${model.name}/promote`, {
      method: "POST",
      headers: {"content-type": "application/json"},
      body: JSON.stringify({version}),
    });
    await refresh();
  });
  cell.append(button);
  return cell;
}

$("pictures").onclick = (event) => { event.target.value = ""; }; // so that the same pictures can be chosen again
$("pictures").onchange = (event) => act(() => classify(event.target.files));
$("model").onchange = () => {
  clearAnswers();
  act(fillFeedback);
};
$("learn").onclick = () => act(learn);
$("folder").onchange = describeChoice;
$("train").onsubmit = (event) => {
  event.preventDefault();
  act(() => submit(event.target));
};
$("key").onsubmit = (event) => {
  event.preventDefault();
  act(async () => {
    storeKey(new FormData(event.target).get("key"));
    $("key").hidden = true;
    await refresh();
  });
};
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("pictures-drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("pictures-drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") act(() => classify(droppedPictures(event.dataTransfer)));
  });
}
act(refresh);
