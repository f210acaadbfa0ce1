// What to try next: recommendations with what they rest on, each of which can be queued.
import { attemptPage, attemptPath, get, pages, post } from "./api.js";
import { ApiError } from "./api.js";
import { find, link, make, showFaults, tell } from "./elements.js";
import { announce } from "./frame.js";
import { onReturn, read, write } from "./state.js";
import { writeNumber, writeSeconds } from "./values.js";

const form = find("ask");
const state = find("state");
let asked = 0;

async function listAttempts(chosen = "") {
  const { attempts } = await get("leaderboard", { task: form.task.value, limit: 50 });
  form.run_id.replaceChildren(...attempts.map((row) => make("option", { value: row.run_id }, `${row.model_name} (${row.accuracy === undefined ? "" : writeNumber(row.accuracy)})`)));
  if (chosen && ![...form.run_id.options].some((option) => option.value === chosen)) form.run_id.prepend(make("option", { value: chosen }, chosen));
  if (chosen) form.run_id.value = chosen;
}

async function readCommands() {
  if (find("commands").value.trim()) {
    try {
      return JSON.parse(find("commands").value);
    } catch (error) {
      throw new ApiError(0, { detail: `The commands are no JSON: ${error.message}` });
    }
  }
  if (!form.run_id.value) throw new ApiError(0, { detail: "There is no attempt on this task: paste commands." });
  return (await get(attemptPath(form.run_id.value))).attempt.training_commands;
}

async function ask() {
  const mine = ++asked;
  const button = form.querySelector("button");
  button.disabled = true;
  const started = Date.now();
  const tick = setInterval(() => tell(state, `Looking at the pictures and at past attempts … ${Math.round((Date.now() - started) / 1000)} s`), 1000);
  tell(state, "Looking at the pictures and at past attempts …");
  find("found").replaceChildren(...Array.from({ length: Math.min(5, form.n.valueAsNumber || 5) }, () => make("li", { class: "card waiting", "aria-hidden": "true" })));
  try {
    const commands = await readCommands();
    const { recommendations } = await post("recommend", { commands, n: form.n.valueAsNumber || 5 });
    if (mine !== asked) return;
    showFaults(find("faults"), null);
    find("found").replaceChildren(...recommendations.map((one, place) => makeCard(one, place, commands)));
    const seconds = Math.round((Date.now() - started) / 1000);
    clearInterval(tick);
    tell(state, recommendations.length ? `${recommendations.length} recommendations, the best first; it took ${seconds} s.` : "Everything in the search space was tried.");
  } catch (error) {
    if (mine !== asked) return;
    find("found").replaceChildren();
    showFaults(find("faults"), error);
    clearInterval(tick);
    tell(state, "");
  } finally {
    clearInterval(tick);
    if (mine === asked) button.disabled = false;
  }
}

function makeCard(one, place, base) {
  const score = one.score_mean === null ? "not known" : `${one.score_mean.toFixed(3)} ± ${(one.score_std ?? 0).toFixed(3)}`;
  const said = make("p", { class: "facts", role: "status", "aria-live": "polite" });
  const button = make("button", { type: "button", class: "strong", "aria-label": `Queue recommendation ${place + 1}` }, "Queue it");
  const faults = make("div", { role: "alert" });
  button.addEventListener("click", () => queue(one.commands, button, said, faults));
  const facts = [["Expected accuracy", score, one.score_mean === null ? "" : "mean ± standard deviation"], ["Takes about", one.seconds === null ? "not known" : writeSeconds(one.seconds), ""]];
  return make("li", { class: "card" },
    make("h2", {}, `${place + 1}. ${describe(one.commands)}`),
    make("dl", { class: "pairs" }, facts.map(([name, value, note]) => make("div", {}, make("dt", {}, name), make("dd", {}, make("strong", {}, value), " ", make("small", {}, note))))),
    make("p", {}, one.reason),
    makeChanges(base, one.commands),
    make("details", {}, make("summary", {}, `Rests on ${one.evidence.length} past attempts`), makeEvidence(one.evidence)),
    make("details", {}, make("summary", {}, "Commands"), make("pre", { class: "code", tabindex: 0 }, JSON.stringify(one.commands, null, 2))),
    make("div", { class: "controls" }, button), said, faults);
}

async function queue(commands, button, said, faults) {
  button.disabled = true;
  try {
    const job = await post("attempts", commands);
    said.replaceChildren("Queued: ", link(attemptPage(job.run_id), job.name), ", ", link(`${pages}/queue`, "see the queue"));
    showFaults(faults, null);
    announce(`Queued ${job.name}`);
  } catch (error) {
    button.disabled = false;
    showFaults(faults, error);
  }
}

function describe(commands) {
  const { name, lr } = commands.optimizer || {};
  const parts = [name, lr === undefined ? null : `lr ${writeNumber(lr)}`, commands.batch_size && `batch ${commands.batch_size}`, commands.scheduler?.name, describeModel(commands.model)];
  return parts.filter(Boolean).join(", ");
}

function describeModel(model) {
  const names = (model?.layers || []).map((layer) => (layer.out_channels ? `${layer.name} ${layer.out_channels}` : layer.name));
  const seen = names.filter((name) => /^(Conv|Linear|BatchNorm|Dropout|LSTM|GRU|Residual)/.test(name));
  return model?.name || (seen.length > 6 ? `${seen.slice(0, 6).join(" · ")} · …` : seen.join(" · "));
}

// What is other than in the commands that stood for the task, outside of the model.
function makeChanges(base, commands) {
  const flat = (value, path = "") => (value && typeof value === "object" && !Array.isArray(value) ? Object.entries(value).flatMap(([key, inner]) => flat(inner, path ? `${path}.${key}` : key)) : [[path, JSON.stringify(value)]]);
  const before = new Map(flat(base));
  const changes = flat(commands).filter(([path, value]) => !/^(model|model_name)(\.|$)/.test(path) && before.get(path) !== value);
  if (JSON.stringify(base.model) !== JSON.stringify(commands.model)) changes.push(["model", "another one"]);
  const shown = changes.slice(0, 12);
  return make("p", { class: "note" }, "Other than in the chosen commands: ", shown.length ? shown.flatMap(([path, value], index) => [index ? ", " : "", make("code", {}, `${path} = ${value.slice(0, 60)}`)]) : "nothing");
}

function makeEvidence(evidence) {
  if (!evidence.length) return make("p", { class: "note" }, "None.");
  const head = ["Attempt", "Task", "Distance", "Accuracy"];
  return make("div", { class: "table", tabindex: 0, role: "region", "aria-label": "Evidence" }, make("table", {},
    make("thead", {}, make("tr", {}, head.map((name, index) => make("th", { scope: "col", class: index > 1 ? "number" : null }, name)))),
    make("tbody", {}, evidence.map((row) => make("tr", {},
      make("td", {}, row.run_id ? link(attemptPage(row.run_id), row.model_name) : row.model_name), make("td", {}, row.task),
      make("td", { class: "number" }, row.distance === null ? "unknown" : row.distance.toFixed(2)),
      make("td", { class: "number" }, row.score === null ? "failed" : writeNumber(row.score)))))));
}

async function start() {
  const address = read();
  form.n.value = address.get("n") || 5;
  const runId = address.get("run_id") || "";
  try {
    if (runId && !address.get("task")) {
      const { attempts } = await get("attempts", { filter: `run_id = '${runId.replaceAll("'", "''")}'`, columns: "task" });
      if (attempts[0]?.task) form.task.value = attempts[0].task;
    } else if (address.get("task")) {
      form.task.value = address.get("task");
    }
    if (form.task.value) await listAttempts(runId);
  } catch (error) {
    showFaults(find("faults"), error);
  }
  if (address.get("ask") === "1" && runId) ask();
}

form.task.addEventListener("change", () => listAttempts().catch((error) => showFaults(find("faults"), error)));
form.addEventListener("submit", (event) => {
  event.preventDefault();
  // Pasted commands do not fit into an address.
  const isPasted = Boolean(find("commands").value.trim());
  write({ task: form.task.value, run_id: form.run_id.value, n: form.n.value === "5" ? null : form.n.value, ask: isPasted ? null : "1" });
  ask();
});
onReturn(start);
start();
