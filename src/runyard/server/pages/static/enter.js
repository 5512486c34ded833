// @ts-check
// Sign in: with the code in the fragment of a link, with an earlier session, or with a key.

export {}; // a module

const form = /** @type {HTMLFormElement} */ (document.querySelector("#enter"));
const problem = /** @type {HTMLElement} */ (document.querySelector("#problem"));

/** Return where to go afterwards: a path of ours. */
function next() {
  const wanted = new URLSearchParams(location.search).get("next") ?? "";
  const url = new URL(wanted || "/ui/runs", location.origin);
  return url.origin === location.origin && url.pathname.startsWith("/ui")
    ? url.pathname + url.search
    : "/ui/runs";
}

/** @param {{ code?: string, key?: string }} given */
async function enter(given) {
  problem.textContent = "";
  try {
    const response = await fetch("/ui/sessions", {
      method: "POST",
      body: JSON.stringify(given),
      headers: { "content-type": "application/json" },
    });
    if (response.ok) location.replace(next());
    else problem.textContent = (await response.json()).message;
  } catch {
    problem.textContent = "The server does not answer.";
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  enter({ key: String(new FormData(form).get("key") ?? "").trim() });
});

if (location.hash.length > 1) {
  const code = location.hash.slice(1);
  history.replaceState(null, "", location.pathname + location.search);
  enter({ code });
} else {
  // A link from another site opens without the cookie, which this request has.
  const response = await fetch("/ui/sessions");
  if (response.ok && (await response.json()).signedIn) location.replace(next());
}
