// The queue, live: rows stay where they are and only what changes is written, so that nobody loses their place.
import { attemptPage, attemptPath, get, mlflowPage, post } from "./api.js";
import { find, link, make, showFault, tell } from "./elements.js";
import { announce } from "./frame.js";
import { followLog } from "./log.js";
import { poll } from "./polling.js";
import { onReturn, read, write } from "./state.js";
import { localTime, writeSeconds, writeTime } from "./values.js";

const BUSY_MS = 1200;
const IDLE_MS = 8000;
const rows = new Map();
let readLog = null;
let logOf = "";

async function turn() {
  try {
    const answer = await get("jobs", { limit: 200 });
    showFault(find("fault"), "");
    show(answer);
    await showLog(answer.jobs);
    const { queued, running } = answer.counts;
    return queued + running ? BUSY_MS : IDLE_MS;
  } catch (error) {
    showFault(find("fault"), error.message);
    return error.status === 0 || error.status >= 500 ? IDLE_MS : false;
  }
}

function show({ jobs, counts, at_once: atOnce }) {
  const order = (job) => (job.state === "running" ? 0 : job.state === "queued" ? 1 : 2);
  const sorted = [...jobs].sort((a, b) => order(a) - order(b) || (order(a) === 2 ? b.job - a.job : a.job - b.job));
  const parts = ["running", "queued", "done", "failed", "cancelled"].filter((state) => counts[state]).map((state) => `${counts[state]} ${state}`);
  tell(find("counts"), `${parts.join(", ") || "Nothing is queued"}; ${atOnce} at once`);
  find("none").hidden = jobs.length > 0;
  const place = find("jobs");
  const keys = sorted.map((job) => `${job.job}`);
  for (const [key, row] of rows) if (!keys.includes(key)) { row.element.remove(); rows.delete(key); }
  sorted.forEach((job, index) => {
    const key = String(job.job);
    if (!rows.has(key)) rows.set(key, makeRow(job));
    rows.get(key).update(job);
    const { element } = rows.get(key);
    if (place.rows[index] !== element) place.insertBefore(element, place.rows[index] || null);
  });
}

function makeRow(first) {
  const state = make("td");
  const bar = make("progress", { max: 1, "aria-label": `Epochs of ${first.name}` });
  const epochs = make("span", { class: "facts" });
  const took = make("td", { class: "number" });
  const fault = make("td", { class: "error" });
  const log = make("button", { type: "button", "aria-label": `Log of ${first.name}`, onclick: () => { write({ run_id: first.run_id }); polling.now(); find("log-section").scrollIntoView({ block: "nearest" }); } }, "Log");
  const cancel = make("button", { type: "button", "aria-label": `Cancel ${first.name}` }, "Cancel");
  cancel.addEventListener("click", async () => {
    cancel.disabled = true;
    try {
      await post(`${attemptPath(first.run_id)}/cancel`);
      announce(`Cancelling ${first.name}`);
      polling.now();
    } catch (error) {
      showFault(find("fault"), error.message);
      cancel.disabled = false;
    }
  });
  const kind = first.kind === "test" ? "test of " : "";
  const commands = [first.commands.optimizer?.name, first.commands.optimizer?.lr && `lr ${first.commands.optimizer.lr}`, first.commands.batch_size && `batch ${first.commands.batch_size}`];
  const element = make("tr", { "data-run": first.run_id }, state,
    make("td", {}, kind, link(attemptPage(first.run_id), first.name), " ", link(mlflowPage(first.run_id), "MLflow", { class: "small" })),
    make("td", { class: "progress" }, bar, " ", epochs), make("td", { class: "buttons" }, log, " ", cancel),
    make("td", {}, commands.filter(Boolean).join(", ")), make("td", { title: localTime(first.submitted) }, writeTime(first.submitted), first.owner ? ` by ${first.owner}` : ""), took, fault);
  return { element, update(job) {
    const isOpen = job.state === "queued" || job.state === "running";
    const told = job.state === "queued" ? `queued, ${job.position === 1 ? "next" : `place ${job.position}`}` : job.cancel_requested && job.state === "running" ? "being cancelled" : job.state;
    tell(state, told);
    state.className = `state ${job.state}`;
    cancel.hidden = !isOpen;
    if (job.cancel_requested) cancel.disabled = true;
    const whole = job.n_epoch || 1;
    const done = job.state === "done" && job.kind === "train" ? whole : job.epochs || 0;
    bar.hidden = job.state !== "running";
    bar.max = whole;
    if (job.state === "running" && job.kind === "train" && job.epochs !== null) bar.value = done;
    tell(epochs, job.state === "running" && job.kind === "train" ? `${job.epochs ?? 0} of ${whole} epochs` : job.kind === "train" ? `${whole} epochs` : "");
    const end = job.ended ? new Date(job.ended) : new Date();
    tell(took, job.started ? writeSeconds(Math.max(0, Math.round((end - new Date(job.started)) / 100) / 10)) : "");
    tell(fault, job.error || "");
  } };
}

async function showLog(jobs) {
  const runId = read().get("run_id") || "";
  find("log-section").hidden = !runId;
  if (!runId) return;
  if (runId !== logOf) [readLog, logOf] = [followLog(runId), runId];
  const job = jobs.find((one) => one.run_id === runId);
  tell(find("log-title"), `Log of ${job ? job.name : runId}`);
  await readLog();
  if (!find("log").textContent) find("log").textContent = "";
}

const polling = poll(turn);
onReturn(() => polling.now());
