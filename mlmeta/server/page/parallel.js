// Parallel coordinates as SVG: every attempt a line over axes. plotly's own need a policy that lets scripts be made of text.
import { shorten } from "./figures.js";
import { isShare, writeNumber } from "./values.js";

const NAMESPACE = "http://www.w3.org/2000/svg";
const HEIGHT = 420;
const TOP = 64;
const BOTTOM = HEIGHT - 26;
const SIDE = 58;
// Of the last axis, whose name is the longest: a metric with its range.
const RIGHT = 140;
const STEP = 118;
const MISSING = "none";
const MOST_NAMES = 12;
const SCALE = [[36, 120, 196], [180, 171, 161], [238, 108, 26]];
const N_STEPS = 20;

function draw(name, attributes, ...children) {
  const element = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function colourOf(rank) {
  const [from, to, part] = rank < 0.5 ? [SCALE[0], SCALE[1], rank * 2] : [SCALE[1], SCALE[2], rank * 2 - 1];
  return `rgb(${from.map((value, index) => Math.round(value + (to[index] - value) * part)).join(",")})`;
}

// Ranks within the task: 0 the worst, 1 the best.
function rankWithinTasks(rows, metric, isLess) {
  const byTask = Map.groupBy ? Map.groupBy(rows, (row) => row.task) : group(rows);
  const ranks = new Map();
  for (const part of byTask.values()) {
    const sorted = [...part].sort((a, b) => (a[metric] - b[metric]) * (isLess ? -1 : 1));
    sorted.forEach((row, place) => ranks.set(row, sorted.length > 1 ? place / (sorted.length - 1) : 0.5));
  }
  return ranks;
}

function group(rows) {
  const found = new Map();
  for (const row of rows) found.set(row.task, [...(found.get(row.task) || []), row]);
  return found;
}

// An axis says where a row stands, 0 below and 1 above, and which ticks it has.
function makeAxis(rows, name) {
  const values = rows.map((row) => row[name] ?? null);
  const known = values.filter((value) => value !== null);
  const hasMissing = known.length < values.length;
  const isNumber = known.length > 0 && known.every((value) => typeof value === "number");
  const axis = isNumber ? makeNumberAxis(known, name) : makeNameAxis(known);
  const low = hasMissing ? 0.1 : 0;
  const place = (value) => (value === null ? 0 : low + (1 - low) * axis.place(value));
  const ticks = axis.ticks.map(([value, text]) => [place(value), text]);
  return { name, places: values.map(place), ticks: hasMissing ? [[0, MISSING], ...ticks] : ticks };
}

function makeNumberAxis(known, name) {
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const isLogarithmic = low > 0 && high / low > 30 && !/accuracy|f1/.test(name);
  const scale = isLogarithmic ? Math.log10 : (value) => value;
  const room = scale(high) - scale(low);
  const place = (value) => (room ? (scale(value) - scale(low)) / room : 0.5);
  const distinct = [...new Set(known)].sort((a, b) => a - b);
  let ticks = distinct;
  if (isLogarithmic) {
    ticks = [low, high];
    for (let power = Math.ceil(scale(low)); power <= scale(high); power += 1) ticks.push(10 ** power);
  } else if (distinct.length > 7) {
    ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => low + part * room);
  }
  const spaced = [];
  for (const tick of ticks) if (spaced.every((other) => Math.abs(place(other) - place(tick)) > 0.045)) spaced.push(tick);
  return { place, ticks: spaced.map((tick) => [tick, writeNumber(tick, 3)]) };
}

function makeNameAxis(known) {
  const counts = new Map();
  for (const value of known) counts.set(String(value), (counts.get(String(value)) || 0) + 1);
  const names = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a)).slice(0, MOST_NAMES).sort();
  const all = counts.size > MOST_NAMES ? [...names, "other"] : names;
  const places = new Map(all.map((name, index) => [name, all.length > 1 ? index / (all.length - 1) : 0.5]));
  return { place: (value) => places.get(String(value)) ?? 1, ticks: all.map((name) => [name, name]) };
}

const heightOf = (place) => BOTTOM - place * (BOTTOM - TOP);

// Draws it, and lets ranges be kept with the pointer or the keyboard.
export function drawParallel(element, rows, names, { isLess, page, tellKept }) {
  const metric = names.at(-1);
  const axes = names.map((name) => makeAxis(rows, name));
  const step = Math.max(STEP, (element.clientWidth - SIDE - RIGHT - 2) / Math.max(1, names.length - 1));
  const width = SIDE + RIGHT + step * (names.length - 1);
  const across = (index) => SIDE + index * step;
  const ranks = rankWithinTasks(rows, metric, isLess);
  const order = rows.map((_, index) => index).sort((a, b) => ranks.get(rows[a]) - ranks.get(rows[b]));
  const svg = draw("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "group", "aria-label": `${rows.length} attempts over ${names.join(", ")}` });
  const lines = draw("g", { class: "lines" });
  const paths = new Map();
  for (const index of order) {
    const points = axes.map((axis, place) => `${across(place).toFixed(1)},${heightOf(axis.places[index]).toFixed(1)}`);
    const title = draw("title", {}, document.createTextNode(`${rows[index].model_name}: ${metric} ${writeNumber(rows[index][metric])}`));
    const path = draw("polyline", { points: points.join(" "), stroke: colourOf(ranks.get(rows[index])) }, title);
    path.addEventListener("click", () => location.assign(page(rows[index].run_id)));
    paths.set(index, path);
    lines.append(path);
  }
  svg.append(lines);
  const ranges = axes.map(() => null);
  const update = () => {
    let kept = 0;
    for (const [index, path] of paths) {
      const isKept = ranges.every((range, place) => !range || (axes[place].places[index] >= range[0] - 1e-9 && axes[place].places[index] <= range[1] + 1e-9));
      path.classList.toggle("out", !isKept);
      kept += isKept;
    }
    tellKept(kept, rows.length);
  };
  axes.forEach((axis, place) => svg.append(drawAxis(svg, axis, across(place), (range) => { ranges[place] = range; update(); })));
  element.replaceChildren(svg);
  element.classList.add("drawn");
  tellKept(rows.length, rows.length);
}

function drawAxis(svg, axis, x, keep) {
  const part = draw("g", { class: "axis", transform: `translate(${x},0)`, tabindex: 0, role: "slider", "aria-label": `Range of ${axis.name}`, "aria-orientation": "vertical" });
  const label = draw("text", { class: "name", transform: `translate(0,${TOP - 14}) rotate(-14)` }, document.createTextNode(shorten(isShare(axis.name) ? `${axis.name} (0 to 1)` : axis.name, 20)));
  const brush = draw("rect", { class: "brush", x: -7, width: 14, y: TOP, height: 0 });
  part.append(draw("rect", { class: "grip", x: -16, width: 32, y: TOP - 8, height: BOTTOM - TOP + 16 }), draw("line", { y1: TOP, y2: BOTTOM }), brush, label);
  for (const [place, text] of axis.ticks) {
    part.append(draw("line", { x1: -4, x2: 4, y1: heightOf(place), y2: heightOf(place) }), draw("text", { x: 8, y: heightOf(place) + 4 }, document.createTextNode(shorten(text, 14))));
  }
  let range = null;
  const set = (wanted) => {
    range = wanted;
    brush.setAttribute("y", range ? heightOf(range[1]) : TOP);
    brush.setAttribute("height", range ? Math.max(2, heightOf(range[0]) - heightOf(range[1])) : 0);
    part.setAttribute("aria-valuetext", range ? `${Math.round(range[0] * 100)} to ${Math.round(range[1] * 100)} percent of the axis` : "everything");
    part.setAttribute("aria-valuemin", 0);
    part.setAttribute("aria-valuemax", 100);
    part.setAttribute("aria-valuenow", range ? Math.round(range[0] * 100) : 0);
    keep(range);
  };
  const read = (event) => {
    const box = svg.getBoundingClientRect();
    return Math.min(1, Math.max(0, (BOTTOM - ((event.clientY - box.top) * HEIGHT) / box.height) / (BOTTOM - TOP)));
  };
  part.addEventListener("pointerdown", (event) => {
    const from = read(event);
    part.setPointerCapture(event.pointerId);
    const move = (now) => { const to = read(now); set([Math.min(from, to), Math.max(from, to)]); };
    const end = () => {
      part.removeEventListener("pointermove", move);
      if (range && range[1] - range[0] < 0.015) set(null);
    };
    set([from, from]);
    part.addEventListener("pointermove", move);
    part.addEventListener("pointerup", end, { once: true });
    part.addEventListener("pointercancel", end, { once: true });
  });
  part.addEventListener("keydown", (event) => {
    const by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (event.key === "Escape") set(null);
    if (!by) return;
    event.preventDefault();
    // Up and down move the lower end, with Shift the upper one.
    const [low, high] = range || [0, 1];
    const shift = by / N_STEPS;
    if (event.shiftKey) set([low, Math.min(1, Math.max(low, high + shift))]);
    else set([Math.max(0, Math.min(high, low + shift)), high]);
  });
  part.setAttribute("aria-valuetext", "everything");
  part.setAttribute("aria-valuenow", 0);
  return part;
}
