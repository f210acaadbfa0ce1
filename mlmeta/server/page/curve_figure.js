// One metric by epoch of some attempts.
import { draw, escape, style } from "./figures.js";
import { nameMetric, isShare } from "./values.js";

export const METRICS = ["train_loss", "val_loss", "val_accuracy", "learning_rate"];

export function drawCurves(place, metric, curves, { logarithmic = false } = {}) {
  const traces = () =>
    curves.map((curve, index) => ({
      type: "scatter", mode: curve.steps.length > 60 ? "lines" : "lines+markers", x: curve.steps, y: curve.values,
      name: escape(curve.model_name), line: { ...style(index), width: 2 }, marker: { size: 5 },
      hovertemplate: `${escape(curve.model_name)}<br>epoch %{x}: %{y:.5g}<extra></extra>`,
    }));
  const longest = Math.max(1, ...curves.map((curve) => Math.max(curve.n_epoch || 0, ...curve.steps.slice(-1))));
  const axis = { title: { text: nameMetric(metric) } };
  if (isShare(metric)) axis.range = [0, 1.02];
  else if (logarithmic) Object.assign(axis, { type: "log", exponentformat: "power" });
  else axis.rangemode = "tozero";
  const few = longest <= 12 ? { dtick: 1 } : {};
  const isEmpty = curves.length > 0 && curves.every((curve) => !curve.steps.length);
  const said = { text: `no ${escape(metric)} was recorded here`, showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 };
  return draw(place, traces, {
    annotations: isEmpty ? [said] : [],
    xaxis: { title: { text: "epoch (finished)" }, range: [0, longest * 1.03], ...few }, yaxis: axis,
    uirevision: `${metric} ${logarithmic} ${curves.length}`,
  });
}
