// The leaderboard: a page of attempts, found by a filter, sorted by the server.
import { attemptPage, get, mlflowPage, pages, post, encode } from "./api.js";
import { find, link, make, tell } from "./elements.js";
import "./frame.js";
import { onReturn, read, write } from "./state.js";
import { localTime, quoteColumn, quoteText, writeScore, writeSeconds, writeTime, writeValue } from "./values.js";

const SIZE = 50;
const MOST_CHOSEN = 50;
const FACTS = ["model_name", "status", "task", "started", "duration_s"];
const HIDDEN = /^(run_id|params\.|data\.|label_names|image_ops\.|keep$|model\.layers|target_transform\.|experiment$)/;
const TITLES = { model_name: "attempt", started: "started (UTC)", duration_s: "took" };
const form = find("query");
const table = find("attempts");
const chosen = new Set(read().getAll("run_id"));
let asked = 0;

function readQuery() {
  const state = read();
  const metric = form.metric.value;
  const natural = form.metric.selectedOptions[0]?.dataset.order || "DESC";
  const [column, way] = (state.get("order") || "").split(/ (?=ASC$|DESC$)/);
  return {
    task: form.task.value, metric, filter: form.filter.value.trim(), offset: Number(state.get("offset")) || 0,
    column: column || metric, way: way || (column ? "ASC" : natural),
    shown: state.getAll("column"),
  };
}

async function show() {
  const query = readQuery();
  const mine = ++asked;
  table.setAttribute("aria-busy", "true");
  const ofTask = query.task ? `task = ${quoteText(query.task)}` : "";
  const whole = query.filter && ofTask ? `(${query.filter}) AND ${ofTask}` : query.filter || ofTask;
  const parameters = { filter: whole, order_by: [`${quoteColumn(query.column)} ${query.way}`, "started DESC"], limit: SIZE, offset: query.offset };
  try {
    // What a user wrote is checked by itself, so that a fault's place is its place.
    if (query.filter && ofTask) await get("attempts", { filter: query.filter, limit: 1 });
    const answer = await get("attempts", parameters);
    if (mine !== asked) return;
    showFilterFault("");
    fill(answer, query);
  } catch (error) {
    if (mine !== asked) return;
    showFilterFault(error.message);
    table.tHead.replaceChildren();
    table.tBodies[0].replaceChildren(make("tr", {}, make("td", { class: "facts" }, "Nothing was found.")));
    tell(find("count"), "");
  } finally {
    if (mine === asked) table.removeAttribute("aria-busy");
  }
}

// The sentence, and below it the filter with a mark at the fault.
function showFilterFault(message) {
  const [sentence, ...pointed] = message.split("\n");
  find("fault").hidden = !message;
  find("fault").replaceChildren(...(message ? [make("p", {}, sentence), make("pre", { tabindex: pointed.length ? 0 : null }, pointed.join("\n"))] : []));
}

function chooseColumns(rows, query) {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((name) => !HIDDEN.test(name));
  const differs = (name) => new Set(rows.map((row) => JSON.stringify(row[name] ?? null))).size > 1;
  const likely = [query.metric, "optimizer.name", "optimizer.lr", "batch_size", "n_epoch", "arch.n_parameters", "arch.batch_norm", "arch.dropout", "arch.activation"];
  const usual = likely.filter((name, place) => names.includes(name) && (place === 0 || differs(name)));
  const shown = query.shown.length ? query.shown.filter((name) => names.includes(name)) : usual;
  if (!shown.includes(query.column) && !FACTS.includes(query.column) && names.includes(query.column)) shown.push(query.column);
  return { all: names.filter((name) => !FACTS.includes(name)), shown };
}

function fill(answer, query) {
  const { all, shown } = chooseColumns(answer.attempts, query);
  const facts = query.task ? FACTS.filter((name) => name !== "task") : FACTS;
  const [first, ...others] = facts;
  const columns = [first, ...(shown.includes(query.metric) ? [query.metric] : []), ...others, ...shown.filter((name) => name !== query.metric)];
  const head = make("tr", {}, make("th", { scope: "col" }, make("span", { class: "hidden" }, "Chosen")), make("th", { scope: "col", class: "number" }, "#"),
    columns.map((name) => makeHeader(name, query, answer.attempts)));
  const rows = answer.attempts.map((row, place) => makeRow(row, columns, answer.offset + place + 1));
  keepFocus(() => {
    table.tHead.replaceChildren(head);
    table.tBodies[0].replaceChildren(...rows);
  });
  if (!rows.length) table.tBodies[0].append(make("tr", {}, make("td", { colspan: columns.length + 2, class: "facts" }, "No attempt is like that.")));
  const last = answer.offset + rows.length;
  tell(find("count"), answer.total ? `${answer.offset + 1} to ${last} of ${answer.total.toLocaleString("en")} attempts` : "0 attempts");
  find("before").disabled = answer.offset === 0;
  find("after").disabled = answer.next_offset === null;
  fillChoice(all, shown);
  tellChosen();
}

// A header that was pressed keeps the focus when the table is made anew.
function keepFocus(change) {
  const column = document.activeElement?.closest?.("th")?.dataset.column;
  change();
  if (column) [...table.tHead.querySelectorAll("th")].find((header) => header.dataset.column === column)?.querySelector("button")?.focus();
}

function makeHeader(name, query, rows) {
  const isSorted = name === query.column;
  const sort = isSorted ? (query.way === "ASC" ? "ascending" : "descending") : null;
  const isNumber = rows.some((row) => typeof row[name] === "number");
  const press = () => {
    const way = isSorted ? (query.way === "ASC" ? "DESC" : "ASC") : isNumber ? "DESC" : "ASC";
    write({ order: `${name} ${way}`, offset: null });
    show();
  };
  return make("th", { scope: "col", "aria-sort": sort, class: isNumber ? "number" : null, "data-column": name },
    make("button", { type: "button", onclick: press }, TITLES[name] || name));
}

function makeRow(row, columns, number) {
  const box = make("input", { type: "checkbox", "aria-label": `Choose ${row.model_name}`, value: row.run_id });
  box.checked = chosen.has(row.run_id);
  const line = make("tr", { class: box.checked ? "chosen" : null }, make("td", {}, box), make("td", { class: "number" }, number),
    columns.map((name) => makeCell(row, name)));
  box.addEventListener("change", () => {
    if (box.checked && chosen.size >= MOST_CHOSEN) box.checked = false;
    chosen[box.checked ? "add" : "delete"](row.run_id);
    line.classList.toggle("chosen", box.checked);
    write({ run_id: [...chosen] }, { push: false });
    tellChosen();
  });
  return line;
}

function makeCell(row, name) {
  const value = row[name];
  if (name === "model_name") return make("td", {}, link(attemptPage(row.run_id), value || row.run_id), " ", link(mlflowPage(row.run_id), "MLflow", { class: "small", "aria-label": `${value} in MLflow` }));
  if (name === "started") return make("td", { title: localTime(value) }, writeTime(value));
  if (name === "duration_s") return make("td", { class: "number" }, writeSeconds(value));
  if (typeof value === "number") return make("td", { class: "number" }, writeScore(name, value));
  return make("td", {}, writeValue(value));
}

function fillChoice(all, shown) {
  const place = find("columns").querySelector("fieldset");
  const focused = document.activeElement?.closest?.("#columns") ? document.activeElement.value : null;
  place.replaceChildren(place.firstElementChild, ...all.map((name) => {
    const box = make("input", { type: "checkbox", value: name });
    box.checked = shown.includes(name);
    box.addEventListener("change", () => {
      write({ column: [...place.querySelectorAll("input:checked")].map((one) => one.value) }, { push: false });
      show();
    });
    return make("label", {}, box, ` ${name}`);
  }));
  if (focused) [...place.querySelectorAll("input")].find((box) => box.value === focused)?.focus();
}

function tellChosen() {
  find("compare").disabled = find("clear").disabled = chosen.size === 0;
  tell(find("compare"), `Curves of the chosen (${chosen.size})`);
}

function readAddress() {
  const state = read();
  form.task.value = state.get("task") || "";
  form.filter.value = state.get("filter") || "";
  if (state.get("metric")) form.metric.value = state.get("metric");
  if (form.metric.selectedIndex < 0) form.metric.selectedIndex = 0;
  if (form.task.selectedIndex < 0) form.task.selectedIndex = 0;
}

function submit() {
  write({ task: form.task.value, metric: form.metric.selectedIndex ? form.metric.value : null, filter: form.filter.value.trim(), offset: null, order: null });
  show();
}

form.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
form.task.addEventListener("change", submit);
form.metric.addEventListener("change", submit);
form.filter.addEventListener("search", submit);
find("compare").addEventListener("click", () => location.assign(`${pages}/curves${encode({ run_id: [...chosen] })}`));
find("read-anew").addEventListener("click", async () => {
  find("read-anew").disabled = true;
  tell(find("count"), "Reading all attempts again …");
  try {
    await post("attempts/read-anew");
    await show();
  } catch (error) {
    tell(find("count"), error.message);
  } finally {
    find("read-anew").disabled = false;
  }
});
find("clear").addEventListener("click", () => { chosen.clear(); write({ run_id: [] }, { push: false }); show(); });
for (const [id, step] of [["before", -SIZE], ["after", SIZE]]) {
  find(id).addEventListener("click", () => { write({ offset: Math.max(0, readQuery().offset + step) || null }); show(); });
}
onReturn(() => { readAddress(); show(); });
readAddress();
show();
