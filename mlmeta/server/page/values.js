// How values are written for people.
const MINUS = "\u2212";
// After these nothing more happens by itself.
const ENDED = new Set(["Trained", "Complete", "Failed", "Interrupted", "Diverged", "Pruned", "incomplete"]);
const SHARES = /(^|_)(accuracy|f1|precision|recall)$/;

export const isAtWork = (status) => Boolean(status) && !ENDED.has(status);
export const isShare = (metric) => SHARES.test(metric);

export function writeNumber(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (Number.isInteger(value)) return Math.abs(value) >= 10000 ? value.toLocaleString("en") : String(value).replace("-", MINUS);
  const size = Math.abs(value);
  const text = size >= 1e-4 && size < 1e6 ? String(Number(value.toPrecision(digits))) : value.toExponential(digits - 2);
  return text.replace("-", MINUS);
}

export const writeScore = (metric, value) =>
  value === null || value === undefined ? "" : isShare(metric) ? value.toFixed(4) : writeNumber(value);

export function writeValue(value) {
  if (value === null || value === undefined) return "";
  return typeof value === "number" ? writeNumber(value) : String(value);
}

export function writeSeconds(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 100) return `${Number(seconds.toPrecision(3))} s`;
  if (seconds < 6000) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

// In UTC, as the headings say and all of mlmeta writes it.
export const writeTime = (text) => (text ? new Date(text).toISOString().slice(0, 16).replace("T", " ") : "");

// Whoever asks, by pointing at a time, is told it in the zone of the browser.
export const localTime = (text) => (text ? new Date(text).toLocaleString("en", { dateStyle: "long", timeStyle: "long" }) : null);

const UNITS = {
  accuracy: "accuracy of the test (share, 0 to 1)", val_accuracy: "validation accuracy (share, 0 to 1)",
  train_loss: "training loss (mean of the epoch)", val_loss: "validation loss (mean)", test_loss: "test loss (mean)",
  learning_rate: "learning rate (size of a step)", duration_s: "duration (s)", epoch_seconds: "time of an epoch (s)",
};
export const nameMetric = (metric) => UNITS[metric] || metric;

export const quoteText = (text) => `'${text.replaceAll("'", "''")}'`;
export const quoteColumn = (name) => `\`${name.replaceAll("`", "``")}\``;
