"use strict";
// Asks for the page's inner part once a second; without this the page is as it was when it was loaded.
const gone = document.getElementById("gone");
let heard = Date.now();
async function look() {
  try {
    const answer = await fetch("/?part=main", { signal: AbortSignal.timeout(3000), cache: "no-store" });
    if (!answer.ok) throw new Error(answer.status);
    document.querySelector("main").innerHTML = await answer.text();
    heard = Date.now();
    gone.classList.remove("shown");
  } catch {
    gone.textContent = `No answer from the balancer for ${Math.round((Date.now() - heard) / 1000)} s`;
    gone.classList.add("shown");
  }
  setTimeout(look, 1000);
}
setTimeout(look, 1000);
