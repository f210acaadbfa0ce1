// The map of tasks, and why two of them are near.
import { get, pages, encode } from "./api.js";
import { find, link, make, showFault, tell } from "./elements.js";
import { PALETTE, colour, draw, escape, load, shorten } from "./figures.js";
import "./frame.js";
import { onReturn, read, write } from "./state.js";
import { writeNumber } from "./values.js";

const N_LINES = 3;
const SPOTS = ["top center", "bottom center", "middle right", "middle left", "top right", "top left", "bottom right", "bottom left"];
const select = find("task");
let known = null;

function showMap(near) {
  const { tasks } = known;
  const place = Object.fromEntries(tasks.map((task) => [task.task, task]));
  const chosen = place[select.value];
  const most = Math.max(1, ...tasks.map((task) => task.n_attempts));
  const isNarrow = find("map").clientWidth < 560;
  const nearest = near.slice(0, N_LINES).map((row) => row.task);
  const isNamed = (task) => !isNarrow || task === chosen || nearest.includes(task.task);
  const names = tasks.map((task) => (isNamed(task) ? shorten(task.task, isNarrow ? 16 : 26) : ""));
  const traces = () => [
    ...near.slice(0, N_LINES).filter((row) => place[row.task] && chosen).map((row) => ({
      type: "scatter", mode: "lines", hoverinfo: "skip", x: [chosen.x, place[row.task].x], y: [chosen.y, place[row.task].y], line: { color: PALETTE[1], width: 1.5, dash: "dot" },
    })),
    {
      type: "scatter", mode: "markers+text", x: tasks.map((task) => task.x), y: tasks.map((task) => task.y), customdata: tasks.map((task) => task.task),
      text: names.map(escape), textposition: sides, cliponaxis: false, textfont: { size: 12 },
      hovertext: tasks.map((task) => `${escape(task.task)}<br>${task.n_attempts} attempts, best ${writeNumber(task.best_score)}<br>${task.label_names.length} labels: ${escape(shorten(task.label_names.slice(0, 6).join(", "), 60))}`),
      hovertemplate: "%{hovertext}<extra></extra>",
      marker: { size: tasks.map((task) => 8 + 8 * Math.sqrt(task.n_attempts / most)), color: tasks.map((task) => (task === chosen ? colour("--accent") : PALETTE[0])), opacity: 0.85 },
    },
  ];
  const ends = (axis) => {
    const values = tasks.map((task) => task[axis]);
    const room = 0.25 * (Math.max(...values) - Math.min(...values)) || 0.5;
    return [Math.min(...values) - room, Math.max(...values) + room];
  };
  const ranges = { x: ends("x"), y: ends("y") };
  const sides = placeNames(tasks, names, find("map"), ranges);
  const bare = { showgrid: true, nticks: isNarrow ? 5 : 9 };
  draw(find("map"), traces, {
    margin: { l: 56, r: 14, t: 12, b: 54 },
    xaxis: { ...bare, range: ranges.x, title: { text: "distance (0 to 1), across" } },
    yaxis: { ...bare, range: ranges.y, scaleanchor: "x", title: { text: "distance (0 to 1), up" } },
  }, (point) => { if (point.customdata) choose(point.customdata); });
}

// Names stand where they cover the fewest points and other names, in the order of the tasks.
function placeNames(tasks, names, element, ranges) {
  const [width, height] = [element.clientWidth - 70, element.clientHeight - 68];
  const scale = Math.min(width / (ranges.x[1] - ranges.x[0]), height / (ranges.y[1] - ranges.y[0]));
  const points = tasks.map((task) => [task.x * scale, -task.y * scale]);
  const taken = points.map(([x, y]) => [x - 9, y - 9, x + 9, y + 9]);
  return names.map((name, index) => {
    if (!name) return "top center";
    const [x, y] = points[index];
    const [wide, high] = [6.6 * name.length, 15];
    const spots = SPOTS.map((spot) => {
      const [up, side] = spot.split(" ");
      const left = side === "left" ? x - wide - 8 : side === "right" ? x + 8 : x - wide / 2;
      const top = up === "top" ? y - high - 6 : up === "bottom" ? y + 6 : y - high / 2;
      const box = [left, top, left + wide, top + high];
      return { spot, box, lost: taken.reduce((sum, other, place) => (place === index ? sum : sum + cover(box, other)), 0) };
    });
    const best = spots.reduce((a, b) => (b.lost < a.lost ? b : a));
    taken.push(best.box);
    return best.spot;
  });
}

const cover = (a, b) => Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));

function showNear(rows) {
  tell(find("near-title"), `Nearest to ${select.value}`);
  find("near").replaceChildren(...rows.map((row) => make("tr", {},
    make("td", {}, make("button", { type: "button", onclick: () => choose(row.task) }, row.task), " ", link(`${pages}/${encode({ task: row.task })}`, "attempts", { class: "small" })),
    ["distance", "pictures", "words"].map((name) => make("td", { class: "number" }, row[name] === null ? "unknown" : row[name].toFixed(2))),
    make("td", {}, row.disagrees ? make("strong", { class: "disagrees" }, "disagree") : "agree"),
    make("td", { class: "number" }, row.n_attempts), make("td", { class: "number" }, writeNumber(row.best_score)), make("td", { class: "terms" }, row.terms))));
  if (!rows.length) find("near").replaceChildren(make("tr", {}, make("td", { colspan: 8, class: "facts" }, "There is no other task.")));
}

async function show() {
  try {
    known ||= await get("tasks");
    const share = known.stress <= 0.05 ? "faithful" : known.stress <= 0.15 ? "good" : "rough";
    tell(find("stress"), `${known.tasks.length} tasks; the map is ${share} (stress ${known.stress.toFixed(3)}; 0 loses nothing)`);
    if (!select.value) return;
    const { tasks } = await get("similar", { task: select.value, limit: 100 });
    showFault(find("fault"), "");
    showNear(tasks);
    await showMap(tasks);
  } catch (error) {
    showFault(find("fault"), error.message);
  }
}

function choose(task) {
  select.value = task;
  write({ task });
  show();
}

select.addEventListener("change", () => choose(select.value));
onReturn(() => { select.value = read().get("task") || select.options[0]?.value; show(); });
load();
show();
