"use strict";
// Parallel coordinates as SVG: every attempt a line over axes. Returns what marks the line of one row.
// eslint-disable-next-line no-unused-vars
function drawLines(element, told, { rows, ranks, axes }, { nameOf, choose }) {
  const [HEIGHT, TOP, BOTTOM, SIDE, RIGHT, STEP, N_STEPS] = [420, 64, 394, 58, 140, 118, 20];
  const SCALE = [[36, 120, 196], [180, 171, 161], [238, 108, 26]];
  const make = (name, attributes, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const colourOf = (rank) => {
    const [from, to, part] = rank < 0.5 ? [SCALE[0], SCALE[1], rank * 2] : [SCALE[1], SCALE[2], rank * 2 - 1];
    return `rgb(${from.map((value, index) => Math.round(value + (to[index] - value) * part)).join(",")})`;
  };
  // 0 below and 1 above.
  const placeOf = ({ range: [low, high] }, value) => (value - low) / (high - low);
  const heightOf = (place) => BOTTOM - place * (BOTTOM - TOP);
  const step = Math.max(STEP, (element.clientWidth - SIDE - RIGHT - 2) / Math.max(1, axes.length - 1));
  const width = SIDE + RIGHT + step * (axes.length - 1);
  const svg = make("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "group", "aria-label": `${rows.length} attempts over ${axes.map((axis) => axis.label).join(", ")}` });
  const lines = make("g", { class: "lines" });
  const kept = axes.map(() => null);
  const paths = rows.map((row, index) => {
    const points = axes.map((axis, across) => `${(SIDE + across * step).toFixed(1)},${heightOf(placeOf(axis, axis.values[index])).toFixed(1)}`);
    const path = make("polyline", { points: points.join(" "), stroke: colourOf(ranks[index]) }, make("title", {}, nameOf(row)));
    path.addEventListener("click", () => choose(row));
    return path;
  });
  lines.append(...paths);
  svg.append(lines);

  function keep(across, range) {
    kept[across] = range;
    let count = 0;
    paths.forEach((path, index) => {
      const isKept = axes.every((axis, place) => !kept[place] || Math.abs(2 * placeOf(axis, axis.values[index]) - kept[place][0] - kept[place][1]) <= kept[place][1] - kept[place][0] + 1e-9);
      path.classList.toggle("out", !isKept);
      count += isKept;
    });
    told.textContent = count === rows.length ? "" : `${count} of ${rows.length} attempts lie in the ranges`;
  }

  axes.forEach((axis, across) => {
    const part = make("g", { class: "axis", transform: `translate(${SIDE + across * step},0)`, tabindex: 0, role: "slider", "aria-label": `Range of ${axis.label}`, "aria-orientation": "vertical", "aria-valuemin": 0, "aria-valuemax": 100 });
    const brush = make("rect", { class: "brush", x: -7, width: 14, y: TOP, height: 0 });
    part.append(make("rect", { class: "grip", x: -16, width: 32, y: TOP - 8, height: BOTTOM - TOP + 16 }), make("line", { y1: TOP, y2: BOTTOM }), brush,
      make("text", { class: "name", transform: `translate(0,${TOP - 14}) rotate(-14)` }, axis.label));
    for (const [value, text] of axis.ticks) {
      const y = heightOf(placeOf(axis, value));
      part.append(make("line", { x1: -4, x2: 4, y1: y, y2: y }), make("text", { x: 8, y: y + 4 }, text));
    }
    let range = null;
    const set = (wanted) => {
      range = wanted;
      brush.setAttribute("y", range ? heightOf(range[1]) : TOP);
      brush.setAttribute("height", range ? Math.max(2, heightOf(range[0]) - heightOf(range[1])) : 0);
      part.setAttribute("aria-valuetext", range ? `${Math.round(range[0] * 100)} to ${Math.round(range[1] * 100)} percent of the axis` : "everything");
      part.setAttribute("aria-valuenow", range ? Math.round(range[0] * 100) : 0);
      keep(across, range);
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
      if (event.key === "Escape" && range) { set(null); event.stopPropagation(); }
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
    svg.append(part);
  });
  element.replaceChildren(svg);
  return (row) => paths.forEach((path, index) => path.classList.toggle("chosen", rows[index] === row));
}
