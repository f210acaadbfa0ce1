// What an attempt's process has printed, read on from where the last answer ended.
import { get } from "./api.js";
import { find } from "./elements.js";

const MOST_CHARACTERS = 400_000;
// An answer has at most 65,536 bytes, a character cut at its end left out.
const FULL_BYTES = 65_000;

export function followLog(runId) {
  const place = find("log");
  let offset = 0;
  place.textContent = "";
  return async function readOn() {
    for (;;) {
      const { text, next_offset: following } = await get(`jobs/${encodeURIComponent(runId)}/log`, { offset });
      if (!text || following === offset) return;
      const isAtEnd = place.scrollHeight - place.scrollTop - place.clientHeight < 40;
      place.append(text);
      const isFull = following - offset >= FULL_BYTES;
      offset = following;
      if (place.textContent.length > MOST_CHARACTERS) place.textContent = `…\n${place.textContent.slice(-MOST_CHARACTERS)}`;
      if (isAtEnd) place.scrollTop = place.scrollHeight;
      // A process that writes faster than it is read would keep the page here for ever.
      if (!isFull) return;
    }
  };
}
