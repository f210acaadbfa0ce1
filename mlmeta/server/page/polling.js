// Asks again and again, as long as the answer says that there is more to come and somebody looks.
export function poll(ask, { everyMs = 1500 } = {}) {
  let timer = 0;
  let stopped = false;
  let running = false;

  async function turn() {
    clearTimeout(timer);
    if (stopped || running || document.visibilityState !== "visible") return;
    running = true;
    let next = everyMs;
    try {
      next = await ask();
    } finally {
      running = false;
      // True: again soon; a number: after so many milliseconds; anything else: no more.
      if (next === true) next = everyMs;
      if (typeof next === "number" && !stopped) timer = setTimeout(turn, next);
    }
  }

  document.addEventListener("visibilitychange", () => { if (document.visibilityState === "visible") turn(); });
  turn();
  return { now: turn, stop() { stopped = true; clearTimeout(timer); } };
}
