// What every page has.
import { find } from "./elements.js";

// On a phone the navigation is wider than the screen.
const list = document.querySelector("nav ul");
const current = list.querySelector("[aria-current]");
if (current) list.scrollLeft = Math.max(0, current.offsetLeft - list.offsetLeft - 40);

// A note for screen readers, and for all who look at the foot of the page for a moment.
let timer = 0;
export function announce(text) {
  const told = find("told");
  told.textContent = text;
  clearTimeout(timer);
  timer = setTimeout(() => { told.textContent = ""; }, 6000);
}
