// Elements made of data. Text of strangers becomes text, never markup.
export const find = (id) => document.getElementById(id);

export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined).map(toNode));
  return element;
}

const toNode = (child) => (child instanceof Node ? child : String(child));

export const link = (address, text, attributes = {}) => make("a", { href: address, ...attributes }, text);

// Replaces text only where it changed, so that screen readers are told of changes alone.
export function tell(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function showFault(element, text) {
  element.hidden = !text;
  tell(element, text || "");
}

// A list of what is wrong with commands, as the command line has it.
export function showFaults(place, error) {
  if (!error) return place.replaceChildren();
  const lines = error.faults && error.faults.length ? error.faults.map(describeFault) : [[error.message]];
  const more = (error.nFaults || 0) - lines.length;
  if (more > 0) lines.push([`and ${more} more`]);
  const count = error.faults && error.faults.length ? `${error.nFaults} ${error.nFaults === 1 ? "fault" : "faults"} in the commands` : "Refused";
  place.replaceChildren(make("div", { class: "fault" }, make("strong", {}, count), make("ul", {}, lines.map((line) => make("li", {}, line)))));
}

function describeFault(fault) {
  const parts = [];
  if (fault.path) parts.push(make("code", {}, fault.path), ": ");
  parts.push(fault.message);
  if (fault.came) parts.push("; got ", make("code", {}, fault.came));
  if (fault.nearest) parts.push(". Did you mean ", make("code", {}, fault.nearest), "?");
  return parts;
}
