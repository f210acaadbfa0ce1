// Requests to mlmeta's API. An answer that is no success becomes an ApiError with all that the server said.
const body = document.body.dataset;
export const pages = body.pages;

export class ApiError extends Error {
  constructor(status, answer) {
    super(answer.detail || `the server answered ${status}`);
    this.status = status;
    this.faults = answer.faults || [];
    this.nFaults = answer.n_faults || this.faults.length;
  }
}

export function encode(parameters) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== "" && one !== null && one !== undefined) query.append(name, one);
    }
  }
  const text = query.toString();
  return text ? `?${text}` : "";
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(`${body.prefix}/ajax-api/mlmeta/${path}`, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { detail: "the server does not answer" });
  }
  const read = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new ApiError(answer.status, read);
  return read;
}

export const get = (path, parameters = {}, options = {}) => ask(path + encode(parameters), options);

// Commands are sent as they were written, so that the server can say where they are faulty.
export const post = (path, content = "{}") =>
  ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: typeof content === "string" ? content : JSON.stringify(content),
  });

export const attemptPath = (runId) => `attempts/${encodeURIComponent(runId)}`;
export const attemptPage = (runId) => `${pages}/${attemptPath(runId)}`;
export const mlflowPage = (runId) => `${pages}/mlflow/${encodeURIComponent(runId)}`;
