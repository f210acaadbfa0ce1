// Which hyperparameters matter, and all attempts over the most important ones.
import { attemptPage, get } from "./api.js";
import { find, make, showFault, tell } from "./elements.js";
import { PALETTE, colour, draw, escape, load, shorten } from "./figures.js";
import "./frame.js";
import { drawParallel } from "./parallel.js";
import { onReturn, read, write } from "./state.js";
import { quoteColumn, quoteText, writeNumber } from "./values.js";

const MOST_AXES = 7;
const MOST_LINES = 1000;
const form = find("query");
let asked = 0;

async function show() {
  const mine = ++asked;
  const [task, metric] = [form.task.value, form.metric.value];
  tell(find("count"), "Forests are grown: some seconds …");
  showFault(find("fault"), "");
  find("importance").classList.add("waiting");
  let rows = [];
  try {
    rows = (await get("importance", { task, metric })).importance;
  } catch (error) {
    if (mine === asked) showFault(find("fault"), error.message);
  }
  if (mine !== asked) return;
  showImportance(rows);
  try {
    await showAttempts(rows, task, metric, mine);
  } catch (error) {
    if (mine === asked) showFault(find("fault"), error.message);
  }
}

function showImportance(rows) {
  const place = find("importance");
  place.classList.remove("waiting");
  const top = rows.slice(0, 12).reverse();
  const names = top.map((row) => escape(shorten(row.param, 24)));
  const interval = (kind) => ({ type: "data", symmetric: false, thickness: 1.2, width: 3,
    array: top.map((row) => row[`${kind}_high`] - row[kind]), arrayminus: top.map((row) => row[kind] - row[`${kind}_low`]) });
  const traces = () => [
    { type: "bar", orientation: "h", y: names, x: top.map((row) => row.importance), marker: { color: PALETTE[0] }, name: "by itself",
      error_x: { ...interval("importance"), color: colour("--faint") }, hovertemplate: "%{y}: %{x:.3f} by itself<extra></extra>" },
    { type: "scatter", mode: "markers", y: names, x: top.map((row) => row.permutation), marker: { color: PALETTE[1], symbol: "diamond", size: 9 }, name: "shuffled",
      error_x: { ...interval("permutation"), color: PALETTE[1] }, hovertemplate: "%{y}: %{x:.3f} lost when shuffled<extra></extra>" },
  ];
  const isNarrow = place.clientWidth < 560;
  draw(place, traces, {
    margin: { l: isNarrow ? 120 : 170, r: 14, t: 34, b: 56 }, showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    xaxis: { title: { text: isNarrow ? "share, or loss of R²" : "share of the variance (bars), loss of R² (diamonds)" }, zeroline: true },
    yaxis: { type: "category", automargin: true },
  });
  const table = find("importance-table");
  const heads = ["hyperparameter", "by itself", "from", "to", "shuffled", "from", "to", "attempts", "tasks"];
  table.tHead.replaceChildren(make("tr", {}, heads.map((head, index) => make("th", { scope: "col", class: index ? "number" : null }, head))));
  table.tBodies[0].replaceChildren(...rows.map((row) => make("tr", {}, Object.values(row).map((value, index) => make("td", { class: index ? "number" : null }, index ? writeNumber(value, 3) : value)))));
}

async function showAttempts(rows, task, metric, mine) {
  const params = rows.slice(0, MOST_AXES).map((row) => row.param);
  const names = params.length ? params : ["optimizer.name", "optimizer.lr", "batch_size"];
  const isScored = `${quoteColumn(metric)} IS NOT NULL`;
  const parameters = {
    filter: task ? `${isScored} AND task = ${quoteText(task)}` : isScored, order_by: `started DESC`, limit: MOST_LINES,
    columns: [...new Set(["run_id", "model_name", "task", ...names, metric])].join(","),
  };
  const answer = await get("attempts", parameters);
  if (mine !== asked) return;
  const some = answer.total > answer.attempts.length ? `the newest ${answer.attempts.length.toLocaleString("en")} of ${answer.total.toLocaleString("en")}` : answer.total.toLocaleString("en");
  tell(find("count"), `${some} attempts with a score`);
  const isLess = form.metric.selectedOptions[0]?.dataset.order === "ASC";
  drawParallel(find("parallel"), answer.attempts, [...names.filter((name) => name !== metric), metric], {
    isLess, page: attemptPage, tellKept: (kept, all) => tell(find("kept"), kept === all ? "" : `${kept} of ${all} attempts lie in the ranges`),
  });
}

function readAddress() {
  form.task.value = read().get("task") || "";
  form.metric.value = read().get("metric") || form.metric.options[0].value;
  if (form.task.selectedIndex < 0) form.task.selectedIndex = 0;
  if (form.metric.selectedIndex < 0) form.metric.selectedIndex = 0;
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("change", () => {
  write({ task: form.task.value, metric: form.metric.selectedIndex ? form.metric.value : null });
  show();
});
onReturn(() => { readAddress(); show(); });
readAddress();
load();
show();
