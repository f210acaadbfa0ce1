// What a page shows stands in its address, so that links, reload, back and forward work.
export const read = () => new URLSearchParams(location.search);

export function write(changes, { push = true } = {}) {
  const state = read();
  for (const [name, value] of Object.entries(changes)) {
    state.delete(name);
    for (const one of Array.isArray(value) ? value : [value]) if (one !== "" && one !== null && one !== undefined) state.append(name, one);
  }
  const text = state.toString();
  const address = location.pathname + (text ? `?${text}` : "");
  if (address === location.pathname + location.search) return;
  history[push ? "pushState" : "replaceState"](null, "", address);
}

export const onReturn = (show) => addEventListener("popstate", show);
