// What an attempt's process has printed, read on from where the last answer ended.
import { get } from "./api.js";
import { find } from "./elements.js";

const MOST_CHARACTERS = 400_000;

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
      offset = following;
      if (place.textContent.length > MOST_CHARACTERS) place.textContent = `…\n${place.textContent.slice(-MOST_CHARACTERS)}`;
      if (isAtEnd) place.scrollTop = place.scrollHeight;
    }
  };
}
