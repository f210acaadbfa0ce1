// Pages whose figures the server drew: another choice is another address.
import "./frame.js";

const form = document.getElementById("query");
form.addEventListener("change", () => form.requestSubmit());
// A task that is chosen on the map.
document.addEventListener("choose", ({ detail }) => { form.task.value = detail; form.requestSubmit(); });
