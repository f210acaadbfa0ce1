// Figures by plotly, in the colours of the page. plotly takes some markup in texts: what comes from data is escaped.
const PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C7AE6"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const SETTINGS = {
  responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "", typesetMath: false,
  modeBarButtonsToRemove: ["lasso2d", "select2d", "toImage"], displayModeBar: false,
};
const isDark = matchMedia("(prefers-color-scheme: dark)");
const drawn = new Map();
let loading = null;

export const style = (index) => ({ color: PALETTE[index % 7], dash: DASHES[Math.floor(index / 7) % 4] });
export const escape = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// The library is large: it is loaded once, where there is a figure.
export function load() {
  loading ||= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = document.body.dataset.plotly;
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => reject(new Error("the library that draws figures could not be loaded"));
    document.head.append(script);
  });
  return loading;
}

function theme(layout) {
  const [text, line, grid, panel] = ["--text", "--line", "--grid", "--panel"].map(colour);
  const themed = {
    hovermode: "closest", showlegend: false, margin: { l: 62, r: 14, t: 16, b: 56 }, ...layout,
    font: { color: text, family: "system-ui, sans-serif", size: 12 },
    paper_bgcolor: panel, plot_bgcolor: panel, uirevision: layout.uirevision || "kept", autosize: true,
    hoverlabel: { bgcolor: panel, bordercolor: line, font: { color: text }, align: "left" },
  };
  if (matchMedia("(pointer: coarse)").matches) themed.dragmode = false;
  for (const name of ["xaxis", "yaxis"]) {
    themed[name] = { automargin: true, zeroline: false, ...layout[name], gridcolor: grid, linecolor: line, tickcolor: line };
  }
  return themed;
}

// makeTraces is a function, for its colours are others in the dark.
export async function draw(place, makeTraces, layout) {
  drawn.set(place, { makeTraces, layout });
  const plotly = await load();
  const wanted = drawn.get(place);
  await plotly.react(place, wanted.makeTraces(), theme({ height: place.clientHeight, ...wanted.layout }), SETTINGS);
  place.classList.add("drawn");
}

isDark.addEventListener("change", () => {
  for (const [place, { makeTraces, layout }] of drawn) draw(place, makeTraces, layout);
});
