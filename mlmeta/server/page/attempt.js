// One attempt: what it was told, how it goes, what came of it.
import { attemptPath, get, post } from "./api.js";
import { drawCurves } from "./curve_figure.js";
import { find, make, showFault, tell } from "./elements.js";
import { load } from "./figures.js";
import { announce } from "./frame.js";
import { followLog } from "./log.js";
import { poll } from "./polling.js";
import { isAtWork, writeScore } from "./values.js";

const runId = find("name").dataset.run;
const readLog = followLog(runId);
let lastText = "";
let wasDone = false;

async function turn() {
  let known;
  try {
    known = await get(attemptPath(runId));
  } catch (error) {
    showFault(find("fault"), error.message);
    return error.status === 0 || error.status >= 500 ? 5000 : false;
  }
  const { attempt, metrics, job } = known;
  const isOpen = job && (job.state === "queued" || job.state === "running");
  const goesOn = isOpen || isAtWork(attempt.status);
  showState(attempt, metrics, job, isOpen);
  showTexts(attempt, metrics, known.data);
  // A test's page shows how the attempt that it tests was trained.
  await showCurves(known.run_id);
  if (job) {
    find("log-section").hidden = false;
    await readLog().catch((error) => showFault(find("fault"), error.message));
  }
  // What is recorded last is read once more.
  if (!goesOn && !wasDone) {
    wasDone = true;
    return 1500;
  }
  return goesOn;
}

function showState(attempt, metrics, job, isOpen) {
  const waits = job?.state === "queued" ? `queued, ${job.position === 1 ? "next" : `place ${job.position}`}` : "";
  const ending = isOpen && job.cancel_requested ? ", being cancelled" : "";
  const score = metrics.accuracy === undefined ? "" : `, accuracy ${writeScore("accuracy", metrics.accuracy)}`;
  tell(find("status"), (waits || attempt.status) + ending + score);
  const whole = attempt.training_commands?.n_epoch;
  const isRunning = job?.state === "running" && job.kind === "train";
  find("progress").hidden = !isRunning;
  if (isRunning && whole) Object.assign(find("progress"), { max: whole, value: attempt.n_epoch });
  tell(find("epochs"), whole ? `${attempt.n_epoch} of ${whole} epochs` : `${attempt.n_epoch} epochs`);
  find("cancel").hidden = !isOpen;
  find("cancel").disabled = Boolean(job?.cancel_requested);
  showFault(find("fault"), job?.error || "");
  const canResume = attempt.status === "Interrupted" && attempt.n_epoch > 0 && job?.kind !== "test";
  find("resume").hidden = !canResume;
  if (canResume) {
    find("resume").replaceChildren("It was stopped and keeps what it has learnt. ", make("code", {}, `mlmeta train --resume ${runId}`), " goes on with it where its checkpoint lies.");
  }
}

function showTexts(attempt, metrics, data) {
  const text = JSON.stringify([attempt, metrics, data]);
  if (text === lastText) return;
  lastText = text;
  find("commands").textContent = JSON.stringify(attempt.training_commands, null, 2);
  find("document").textContent = JSON.stringify(attempt, null, 2);
  find("data-section").hidden = !data;
  find("data").textContent = data;
  const names = Object.keys(metrics).sort();
  const cells = names.map((name) => make("tr", {}, make("th", { scope: "row" }, name), make("td", { class: "number" }, writeScore(name, metrics[name]))));
  find("metrics").replaceChildren(...(cells.length ? cells : [make("tr", {}, make("td", { class: "facts" }, "None yet."))]));
}

async function showCurves(trainedId) {
  try {
    const [train, validation, accuracy] = await Promise.all(["train_loss", "val_loss", "val_accuracy"].map((metric) => get("curves", { run_id: trainedId, metric })));
    const losses = [{ ...train.curves[0], model_name: "training" }, ...validation.curves.filter((curve) => curve.steps.length).map((curve) => ({ ...curve, model_name: "validation" }))];
    await drawCurves(find("left-figure"), "loss", losses);
    await drawCurves(find("right-figure"), "val_accuracy", accuracy.curves);
  } catch (error) {
    // A run that was queued a moment ago is not among the attempts yet.
    if (error.status !== 404) showFault(find("fault"), error.message);
  }
}

find("cancel").addEventListener("click", async () => {
  find("cancel").disabled = true;
  try {
    await post(`${attemptPath(runId)}/cancel`);
    announce("Cancelling");
  } catch (error) {
    showFault(find("fault"), error.message);
  }
  polling.now();
});

load();
const polling = poll(turn, { everyMs: 1200 });
