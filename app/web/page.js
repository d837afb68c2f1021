import {fillFeedback, labelForm} from "./feedback.js";
import {$, Problem, act, call, explain, failure, headers, percent, text} from "./service.js";
import {pack} from "./tar.js";

const MAX_TOP = 3;
const ENDED = new Set(["succeeded", "failed", "cancelled"]);
const HIDDEN_FILE = /(^|\/)(\.|__MACOSX\/|Thumbs\.db$|desktop\.ini$)/i;
const following = new Set();

async function refresh() {
  const {models} = await (await call("models")).json();
  const usable = models.filter((model) => model.aliases.production !== null);
  fillSelect($("model"), usable.map(({name}) => new Option(name)), usable.find((model) => model.default)?.name);
  fillSelect($("base"), [new Option("what fits", ""), ...usable.map(({name}) => new Option(name))], "");
  await Promise.all([fillModels(models), fillJobs(), fillFeedback()]);
}

function fillSelect(select, options, preferred) {
  const before = select.value || preferred;
  select.replaceChildren(...options);
  if (options.some((option) => option.value === before)) select.value = before;
}

async function classify(files) {
  const pictures = [...files];
  if (!pictures.length) return;
  const body = new FormData();
  for (const picture of pictures) body.append("file", picture, picture.name);
  const query = new URLSearchParams({top_k: MAX_TOP, ...($("model").value && {model: $("model").value})});
  const {predictions} = await (await call(`predict?${query}`, {method: "POST", body})).json();
  $("answers").replaceChildren(...predictions.map((prediction, index) => answerItem(prediction, pictures[index])));
  // Pictures are stored a moment after their answer; whoever asks for one waits for that.
  const last = predictions.findLast(({id}) => id);
  if (last) await call(`feedback/${last.id}/picture`);
  await fillFeedback();
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
  if (id) item.querySelector(".top").append(labelForm(id));
  return item;
}

/** The files of the chosen folder that are worth sending, with the folder's own name in front. */
function chosenFiles() {
  return [...$("folder").files]
    .map((file) => ({path: file.webkitRelativePath || file.name, file}))
    .filter(({path}) => !HIDDEN_FILE.test(path));
}

function describeChoice() {
  const files = chosenFiles();
  const classes = new Set(files.map(({path}) => path.split("/").slice(1, -1).join("/")).filter(Boolean));
  $("folder-chosen").textContent = files.length
    ? `${files.length} files in ${[...classes].sort().join(", ") || "no class folder"}`
    : "Choose a folder that holds one folder of pictures for each class";
}

async function submit(form) {
  const files = chosenFiles();
  if (!files.length) throw new Error("Choose a folder of pictures first.");
  const body = new FormData(form);
  if (!body.get("base")) body.delete("base");
  body.append("dataset", pack(files), `${body.get("name")}.tar`);
  await begin(body);
  form.reset();
  describeChoice();
}

/** Train the chosen model on the labels that it was given. */
async function learn() {
  const body = new FormData();
  body.append("dataset", "feedback");
  body.append("name", $("model").value);
  await begin(body);
}

async function begin(body) {
  const job = await send("finetune", body);
  follow(job.id, jobItem(job));
}

/** POST with a bar for what has been sent, which fetch cannot report. */
function send(path, body) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    // A second click, or a retry after a broken connection, must not train twice.
    request.setRequestHeader("idempotency-key", [...crypto.getRandomValues(new Uint32Array(4))].join("-"));
    request.upload.onprogress = (event) => Object.assign($("sent"), {hidden: false, value: event.loaded / event.total});
    request.onerror = () => reject(new Error("The connection to the service broke. Try again."));
    request.onload = () => {
      if (request.status === 202) resolve(JSON.parse(request.responseText));
      else reject(new Problem(request.status, explain(request.status, request.responseText)));
    };
    request.onloadend = () => { $("sent").hidden = true; };
    request.send(body);
  });
}

async function fillJobs() {
  const {jobs} = await (await call("finetune")).json();
  for (const job of [...jobs].reverse()) {
    const item = document.querySelector(`#jobs [data-id="${CSS.escape(job.id)}"]`) ?? jobItem(job);
    showJob(item, job);
    if (!ENDED.has(job.status)) follow(job.id, item);
  }
}

function jobItem(job) {
  $("jobs").prepend($("job").content.cloneNode(true));
  const item = $("jobs").firstElementChild;
  item.dataset.id = job.id;
  item.querySelector(".cancel").onclick = () => act(() => call(`finetune/${job.id}`, {method: "DELETE"}));
  return item;
}

function showJob(item, job) {
  const {epoch = 0, epochs = 0, val_accuracy: accuracy, eta_seconds: eta} = job.progress ?? {};
  item.querySelector(".name").textContent = job.name ?? "";
  item.querySelector(".status").textContent = job.status;
  item.querySelector(".cancel").hidden = ENDED.has(job.status);
  const bar = item.querySelector("progress");
  bar.hidden = ENDED.has(job.status);
  bar.value = epochs ? epoch / epochs : 0;
  const detail = item.querySelector(".detail");
  detail.classList.toggle("error", job.status === "failed");
  if (job.error) detail.textContent = failure(job.error);
  else if (job.result) detail.textContent = `Version ${job.result.version}. ${job.result.reason}`;
  else {
    detail.textContent = [
      epochs && `epoch ${epoch} of ${epochs}`,
      accuracy != null && `${percent(accuracy)} right so far`,
      eta != null && `about ${Math.max(1, Math.round(eta / 60))} min left`,
    ].filter(Boolean).join(", ");
  }
}

/** Show a job's events until it has ended. EventSource cannot send the key, so the stream is read by hand. */
async function follow(id, item) {
  if (following.has(id)) return;
  following.add(id);
  try {
    const stream = (await call(`finetune/${id}/events`)).body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (let part = await stream.read(); !part.done; part = await stream.read()) {
      const events = (rest + part.value).split(/\r?\n\r?\n/);
      rest = events.pop();
      for (const event of events) {
        const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("");
        if (data) showJob(item, JSON.parse(data));
      }
    }
  } finally {
    following.delete(id);
  }
  await act(refresh);
}

async function fillModels(models) {
  $("models").replaceChildren(...await Promise.all(models.map(modelCard)));
}

async function modelCard(model) {
  const card = $("model-card").content.cloneNode(true);
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

$("pictures").onchange = (event) => act(() => classify(event.target.files));
$("model").onchange = () => act(fillFeedback);
$("learn").onclick = () => act(learn);
$("folder").onchange = describeChoice;
$("train").onsubmit = (event) => {
  event.preventDefault();
  act(() => submit(event.target));
};
$("key").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", new FormData(event.target).get("key"));
  $("key").hidden = true;
  act(refresh);
};
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("pictures-drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("pictures-drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") act(() => classify(event.dataTransfer.files));
  });
}
act(refresh);
