// The form that takes commands and queues them.
import { attemptPage, attemptPath, get, post } from "./api.js";
import { find, link, showFaults, tell } from "./elements.js";
import { announce } from "./frame.js";
import { read } from "./state.js";

const form = find("new");
const commands = find("commands");
const address = find("address");
if (address) address.textContent = location.origin + document.body.dataset.prefix;

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  tell(find("sent"), "Checking …");
  try {
    const job = await post("attempts", commands.value);
    showFaults(find("faults"), null);
    find("sent").replaceChildren("Queued: ", link(attemptPage(job.run_id), job.name));
    location.assign(attemptPage(job.run_id));
  } catch (error) {
    tell(find("sent"), "");
    showFaults(find("faults"), error);
  } finally {
    button.disabled = false;
  }
});

// The Tab key leaves the field, as everywhere; to indent, there are spaces.
const runId = read().get("run_id");
if (runId) {
  try {
    const { attempt } = await get(attemptPath(runId));
    commands.value = JSON.stringify(attempt.training_commands, null, 2);
    announce(`Commands of ${attempt.name}`);
  } catch (error) {
    showFaults(find("faults"), error);
  }
}
