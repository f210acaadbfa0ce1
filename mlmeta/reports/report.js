"use strict";
(() => {
  const attempts = JSON.parse(document.getElementById("attempts").textContent);
  const isDark = matchMedia("(prefers-color-scheme: dark)");
  const isTouched = matchMedia("(pointer: coarse)");
  // plotly.js would offer to send the data to its maker's server.
  const settings = {
    responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "", typesetMath: false,
    modeBarButtonsToRemove: ["lasso2d", "select2d"],
  };
  const figures = new Map();
  const marks = [];
  let selected = null;

  for (const place of document.querySelectorAll("[data-figure]")) {
    const source = place.parentElement.querySelector("script");
    const figure = { place, group: place.dataset.group || "", task: "", colours: "rank", drawn: false };
    figure.read = () => (figure.spec ||= JSON.parse(source.textContent));
    figures.set(place, figure);
  }

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function themeLayout(layout) {
    const [text, line, grid, panel] = ["--text", "--line", "--grid", "--panel"].map(colour);
    const themed = structuredClone(layout);
    themed.font = { ...themed.font, color: text, family: "system-ui, sans-serif", size: 12 };
    themed.paper_bgcolor = panel;
    themed.hoverlabel = { bgcolor: panel, bordercolor: line, font: { color: text }, align: "left" };
    themed.uirevision = "kept";
    if (isTouched.matches) themed.dragmode = false;
    for (const name of Object.keys(themed)) {
      if (/^[xy]axis\d*$/.test(name)) Object.assign(themed[name], { gridcolor: grid, linecolor: line, tickcolor: line });
    }
    return themed;
  }

  function themeTrace(trace, figure) {
    const themed = structuredClone(trace);
    if (themed.customdata) themed.text = themed.customdata.map((row) => (row === null ? "" : attempts.texts[row]));
    const meta = themed.meta || {};
    if (meta.colours) themed.line.color = meta.colours[figure.colours];
    if (figure.task && meta.task !== undefined) themed.visible = meta.task === figure.task;
    return themed;
  }

  function markSelected(traces) {
    const mark = { type: "scatter", x: [], y: [], hoverinfo: "skip", showlegend: false, mode: "markers" };
    mark.marker = { color: colour("--accent"), size: 11, line: { color: colour("--panel"), width: 1.5 } };
    for (const trace of traces) {
      if (!trace.customdata || trace.visible === false) continue;
      trace.customdata.forEach((row, place) => {
        if (row !== selected || row === null) return;
        mark.x.push(trace.x[place]);
        mark.y.push(trace.y[place]);
        if (trace.mode === "lines") Object.assign(mark, { mode: "lines+markers", line: { color: colour("--accent"), width: 3 } });
      });
    }
    if (mark.mode !== "markers") mark.marker.size = 6;
    return mark;
  }

  function draw(figure) {
    const spec = figure.read();
    const traces = spec.data.map((trace) => themeTrace(trace, figure));
    const isMarked = traces.some((trace) => trace.customdata);
    if (isMarked) traces.push(markSelected(traces));
    const first = !figure.drawn;
    figure.drawn = true;
    Plotly.react(figure.place, traces, themeLayout(spec.layout), {
      ...settings, displayModeBar: spec.layout.height < 250 ? false : "hover",
    });
    if (first) {
      figure.place.on("plotly_click", (event) => {
        const { customdata: row, id } = event.points[0] || {};
        if (Number.isInteger(row)) select(row === selected ? null : row);
        // A page around these figures may do more with what has a name.
        else if (id !== undefined) document.dispatchEvent(new CustomEvent("choose", { detail: id }));
      });
    }
  }

  // What is on the screen comes first, and each figure in a task of its own, so that the page answers at once.
  function drawAgain(isWanted) {
    const wanted = [...figures.values()].filter((figure) => figure.drawn && isWanted(figure));
    const middle = innerHeight / 2;
    const distance = ({ place }) => Math.abs(place.getBoundingClientRect().top - middle);
    wanted.sort((a, b) => distance(a) - distance(b)).forEach((figure) => setTimeout(() => draw(figure)));
  }

  function holds(figure, row) {
    figure.rows ||= new Set(figure.read().data.flatMap((trace) => trace.customdata || []));
    return row !== null && figure.rows.has(row);
  }

  function select(row) {
    const before = selected;
    selected = row;
    for (const line of document.querySelectorAll("tr[data-row]")) {
      const isChosen = row !== null && Number(line.dataset.row) === row;
      line.classList.toggle("chosen", isChosen);
      line.querySelector("button").setAttribute("aria-pressed", String(isChosen));
    }
    document.getElementById("selected").hidden = row === null;
    // These texts were escaped when the page was written.
    document.getElementById("selected-text").innerHTML = row === null ? "" : attempts.texts[row];
    const { pages } = document.body.dataset;
    if (pages && row !== null) {
      const link = Object.assign(document.createElement("a"), { href: `${pages}/attempts/${attempts.rows.run_id[row]}`, textContent: "Open" });
      document.getElementById("selected-text").append(" ", link);
    }
    marks.forEach((mark) => mark(row));
    drawAgain((figure) => holds(figure, before) || holds(figure, row));
  }

  function sortTable(header) {
    const table = header.closest("table");
    const column = [...header.parentElement.children].indexOf(header);
    const isAscending = header.getAttribute("aria-sort") !== "ascending";
    for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
    const isNumber = header.classList.contains("number");
    const read = (line) => line.children[column].dataset.value ?? line.children[column].textContent;
    const keyed = [...table.tBodies[0].rows].map((line) => [read(line), line]);
    keyed.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = isNumber ? Number(a) - Number(b) : a.localeCompare(b);
      return isAscending ? order : -order;
    });
    table.tBodies[0].append(...keyed.map(([, line]) => line));
  }

  function filterTables(input) {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const part of document.querySelectorAll("details[data-task]")) {
      let inPart = 0;
      for (const line of part.querySelectorAll("tr[data-row]")) {
        line.words ||= `${part.dataset.task} ${line.textContent}`.toLowerCase();
        line.hidden = !words.every((word) => line.words.includes(word));
        inPart += !line.hidden;
      }
      part.wasOpen ??= part.open;
      part.open = words.length ? inPart > 0 : part.wasOpen;
      part.hidden = words.length > 0 && inPart === 0;
      count += inPart;
    }
    document.getElementById("filter-count").textContent = words.length ? `${count} attempts match` : "";
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const line = button.closest("tr[data-row]");
    const header = button.closest("th");
    if (button.id === "selected-clear") select(null);
    else if (header) sortTable(header);
    else if (line) select(Number(line.dataset.row) === selected ? null : Number(line.dataset.row));
  });
  document.addEventListener("input", (event) => {
    if (event.target.id === "filter") filterTables(event.target);
  });
  document.addEventListener("change", (event) => {
    const { group, setting } = event.target.dataset;
    if (!setting) return;
    for (const figure of figures.values()) if (figure.group === group) figure[setting] = event.target.value;
    drawAgain((figure) => figure.group === group);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && selected !== null) select(null);
  });

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      if (figures.has(entry.target)) draw(figures.get(entry.target));
      else drawAxes(entry.target);
      entry.target.classList.add("drawn");
    }
  }, { rootMargin: "600px" });

  function drawAxes(place) {
    const [told, source] = [place.parentElement.nextElementSibling, place.closest("section").querySelector("script[data-lines]")];
    const choose = (row) => select(row === selected ? null : row);
    const mark = drawLines(place, told, JSON.parse(source.textContent), { choose, nameOf: (row) => attempts.rows.model_name[row] });
    mark(selected);
    marks.push(mark);
  }

  document.querySelectorAll("[data-figure], div[data-lines]").forEach((place) => watcher.observe(place));
  addEventListener("beforeprint", () => figures.forEach((figure) => figure.drawn || draw(figure)));
  isDark.addEventListener("change", () => drawAgain(() => true));
})();
