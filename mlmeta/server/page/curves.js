// Curves of chosen attempts, which grow while one of them is at work.
import { attemptPage, get, mlflowPage } from "./api.js";
import { METRICS, drawCurves } from "./curve_figure.js";
import { find, link, make, showFault, tell } from "./elements.js";
import { load, style } from "./figures.js";
import "./frame.js";
import { poll } from "./polling.js";
import { onReturn, read, write } from "./state.js";
import { isAtWork, nameMetric, writeScore } from "./values.js";

const SIDES = { left: "train_loss", right: "val_accuracy" };
let polling = null;

for (const [side, usual] of Object.entries(SIDES)) {
  const select = find(side);
  for (const metric of METRICS) select.append(make("option", { value: metric }, metric));
  select.value = read().get(side) || usual;
  if (select.selectedIndex < 0) select.value = usual;
  select.addEventListener("change", () => { write({ [side]: select.value === usual ? null : select.value }); start(); });
}
find("log").checked = read().get("log") === "1";
find("log").addEventListener("change", () => { write({ log: find("log").checked ? "1" : null }, { push: false }); start(); });

async function turn() {
  const wanted = read().getAll("run_id").slice(0, 50);
  find("lack").hidden = wanted.length > 0;
  const jobs = (await get("jobs", { state: ["queued", "running"], limit: 1000 })).jobs.filter((job) => wanted.includes(job.run_id));
  const waiting = new Map(jobs.map((job) => [job.run_id, job]));
  if (!wanted.length) return show({}, []), false;
  const known = {};
  try {
    for (const side of Object.keys(SIDES)) known[side] = (await get("curves", { run_id: wanted, metric: find(side).value })).curves;
    showFault(find("fault"), "");
  } catch (error) {
    // What was queued a moment ago is not among the attempts yet.
    if (error.status !== 404 || !jobs.length) showFault(find("fault"), error.message);
    return jobs.length > 0 || error.status === 0;
  }
  show(known, jobs);
  const growing = known.left.filter((curve) => isAtWork(curve.status) || waiting.has(curve.run_id)).length;
  tell(find("live"), growing ? `${growing} at work: the curves grow` : "");
  return growing > 0;
}

function show(known, jobs) {
  for (const side of Object.keys(SIDES)) {
    const metric = find(side).value;
    drawCurves(find(`${side}-figure`), metric, known[side] || [], { logarithmic: find("log").checked });
    tell(find(`${side}-name`), metric);
    find(`${side}-figure`).setAttribute("aria-label", `${nameMetric(metric)} by epoch; the last values stand in the table below`);
  }
  fillTable(known, new Map(jobs.map((job) => [job.run_id, job])));
}

function fillTable(known, jobs) {
  const rows = (known.left || []).map((curve, index) => {
    const last = (side) => known[side][index].values.filter((value) => value !== null).at(-1);
    const { color, dash } = style(index);
    const mark = make("i", { class: "mark", style: `border-color:${color};border-top-style:${dash === "solid" ? "solid" : dash === "dot" ? "dotted" : "dashed"}`, "aria-hidden": "true" });
    const finished = curve.steps.at(-1) ?? 0;
    return {
      key: curve.run_id,
      cells: [
        () => [mark, " ", link(attemptPage(curve.run_id), curve.model_name), " ", link(mlflowPage(curve.run_id), "MLflow", { class: "small" })],
        jobs.get(curve.run_id)?.state === "queued" ? "queued" : curve.status,
        curve.n_epoch ? `${finished} of ${curve.n_epoch}` : String(finished),
        writeScore(find("left").value, last("left")), writeScore(find("right").value, last("right")),
        () => [make("button", { type: "button", "aria-label": `Leave out ${curve.model_name}`, onclick: () => leaveOut(curve.run_id) }, "×")],
      ],
    };
  });
  const place = find("chosen");
  const same = [...place.rows].map((row) => row.dataset.key).join() === rows.map((row) => row.key).join();
  if (!same) place.replaceChildren(...rows.map((row) => make("tr", { "data-key": row.key },
    row.cells.map((cell, index) => make("td", { class: index > 1 && index < 5 ? "number" : null }, typeof cell === "function" ? cell() : cell)))));
  else rows.forEach((row, line) => row.cells.forEach((cell, index) => { if (typeof cell === "string") tell(place.rows[line].cells[index], cell); }));
}

function leaveOut(runId) {
  write({ run_id: read().getAll("run_id").filter((one) => one !== runId) });
  start();
}

function start() {
  polling?.stop();
  polling = poll(async () => {
    try {
      return await turn();
    } catch (error) {
      showFault(find("fault"), error.message);
      return error.status === 0 ? 5000 : false;
    }
  });
}

find("newest").addEventListener("click", async () => {
  const { attempts } = await get("attempts", { limit: 5, columns: "run_id" });
  write({ run_id: attempts.map((row) => row.run_id) });
  start();
});
find("working").addEventListener("click", async () => {
  const [{ attempts }, { jobs }] = await Promise.all([
    get("attempts", { filter: "status IN ('Training', 'Testing')", limit: 50, columns: "run_id" }), get("jobs", { state: ["queued", "running"], limit: 50 }),
  ]);
  const found = [...new Set([...attempts, ...jobs].map((row) => row.run_id))];
  if (!found.length) return showFault(find("fault"), "Nothing is at work.");
  write({ run_id: found.slice(0, 50) });
  start();
});
onReturn(() => {
  for (const [side, usual] of Object.entries(SIDES)) find(side).value = read().get(side) || usual;
  start();
});
load();
start();
