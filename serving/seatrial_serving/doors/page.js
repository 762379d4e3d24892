"use strict";
// Makes the page from openapi.json. Everything that comes from there becomes text: no markup is ever parsed.

let key = "";  // for a server that asks who calls: kept here alone, and gone with the page
const PLACEHOLDER = "localhost:8000";
const MOST_LABELS = 20;

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function ask(path, options) {
  return fetch(path, { ...options, headers: { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) } });
}

function signature(title, tensors) {
  const rows = tensors.map((tensor) =>
    element("tr", {}, element("td", {}, element("code", {}, tensor.name)), element("td", {}, tensor.datatype),
      element("td", {}, tensor.shape.length ? tensor.shape.join(" × ") : "one element")));
  const head = element("tr", {}, ...[title, "datatype", "shape"].map((word) => element("th", {}, word)));
  return element("div", { class: "wide" }, element("table", {}, head, ...rows));
}

function copied(text) {
  const button = element("button", { type: "button" }, "copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "copied";
    } catch {  // only over HTTPS or from this machine
      getSelection().selectAllChildren(pre);
      button.textContent = "selected";
    }
  });
  const pre = element("pre", {}, text);
  return element("div", { class: "copied" }, pre, button);
}

function asking(path, example) {
  const box = element("textarea", { spellcheck: "false", "aria-label": "request" });
  box.value = JSON.stringify(example);
  const send = element("button", { type: "button", class: "send" }, "Send");
  const status = element("span", { class: "faint", role: "status" });
  const answer = element("pre", { hidden: "" });
  send.addEventListener("click", async () => {
    send.disabled = true;
    status.textContent = "asking …";
    const began = performance.now();
    try {
      const response = await ask(path.slice(1), { method: "POST", body: box.value, headers: { "content-type": "application/json" } });
      const text = await response.text();
      status.textContent = `${response.status} after ${(performance.now() - began).toFixed(1)} ms`;
      answer.textContent = text;
    } catch (error) {
      status.textContent = "no answer";
      answer.textContent = String(error);
    }
    answer.hidden = false;
    send.disabled = false;
  });
  return [box, element("div", { class: "act" }, send, element("span", { class: "faint" }, "POST ", element("code", {}, path)), status), answer];
}

function model(described, examples) {
  const here = (text) => text.replace(PLACEHOLDER, location.host);
  const verified = described.verified
    ? element("span", { class: "tag good" }, "verified")
    : element("span", { class: "tag bad" }, "unverified: nothing vouches for its answers");
  const section = element("section", { class: "model" },
    element("div", { class: "title" }, element("h2", {}, described.name), element("span", { class: "tag" }, `version ${described.version}`),
      element("span", { class: "tag" }, described.variant), verified),
    element("p", { class: "faint" }, element("code", {}, described.digest)),
    element("h3", {}, "Signature"), signature("input", described.inputs), signature("output", described.outputs));
  if (described.labels.length) {
    const more = described.labels.length - MOST_LABELS;
    const shown = described.labels.slice(0, MOST_LABELS).join(", ");
    section.append(element("p", { class: "faint" }, `labels: ${shown}${more > 0 ? ` and ${more} more` : ""}`));
  }
  section.append(element("h3", {}, "Asked by"), ...described.paths.map((path) => element("p", {}, element("code", {}, `POST ${path}`))));
  if (described.curl) section.append(element("h3", {}, "From a shell"), copied(here(described.curl)));
  section.append(element("h3", {}, "From Python, with tritonclient"), copied(here(described.python)));
  section.append(element("h3", {}, "From here"));
  if (described.example) section.append(...asking(described.paths[0], examples[described.example].value));
  else section.append(element("p", { class: "faint" }, "What it takes is too large for this page, or has no JSON form."));
  return section;
}

function paths(described) {
  return described.tags.flatMap((tag) => {
    const rows = [];
    for (const [path, methods] of Object.entries(described.paths)) {
      for (const [method, operation] of Object.entries(methods)) {
        if (operation.tags[0] !== tag.name) continue;
        rows.push(element("tr", {}, element("td", { class: "method" }, method.toUpperCase()),
          element("td", {}, element("code", {}, path)), element("td", { class: "faint" }, operation.summary)));
      }
    }
    return rows.length ? [element("h3", {}, tag.name), element("div", { class: "wide" }, element("table", {}, ...rows))] : [];
  });
}

async function show() {
  const models = document.getElementById("models");
  try {
    const response = await ask("openapi.json", {});
    if (response.status === 401) document.getElementById("access").hidden = false;
    if (!response.ok) throw new Error(response.status === 401 ? "the server asks who calls" : `openapi.json: ${response.status}`);
    const described = await response.json();
    const shown = described["x-seatrial-models"].map((each) => model(each, described.components.examples));
    models.replaceChildren(...(shown.length ? shown : [element("p", {}, "No model is served.")]));
    const section = document.getElementById("paths");
    section.replaceChildren(section.firstElementChild, ...paths(described));
    section.hidden = false;
  } catch (error) {
    models.replaceChildren(element("p", {}, `This page could not be made: ${error.message}`));
  }
}

document.getElementById("key").addEventListener("change", (event) => {
  key = event.target.value.trim();
  show();
});
show();
