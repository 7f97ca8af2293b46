"use strict";
// Keys of the classes; 0, Space, Backspace, Enter and / are those of the other buttons.
const KEYS = "123456789abcdefghijklmnopqrstuvwxyz";
const NONE = ["", "none of these"];
const SKIPPED = ["", "skipped"];
const WAITING = ["", ""];
const find = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

let classes = [];
let state = null;
let busy = false;  // a request is on its way
let timer = 0;
let done = [];     // what this page has labelled, for undo: [key, mark]

function visitorName() {
  let name = sessionStorage.getItem("visitor");
  if (!name) {
    const numbers = crypto.getRandomValues(new Uint32Array(4));
    name = Array.from(numbers, (number) => number.toString(36)).join("-");
    sessionStorage.setItem("visitor", name);
  }
  return name;
}
const visitor = visitorName();
const query = `visitor=${encodeURIComponent(visitor)}`;

// The answer of the server, which is waited for: a label is kept once it has answered.
async function ask(path, body) {
  const options = {};
  if (body !== undefined) {
    options.method = "POST";
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  for (let failed = false; ; failed = true) {
    try {
      const answer = await fetch(path, options);
      const content = await answer.json();
      if (failed) say("");
      return { ok: answer.ok, content };
    } catch {
      say("The server does not answer. " + (body ? "This is not kept yet: it is sent again." : ""));
      await sleep(1000);
    }
  }
}

function say(text) {
  find("message").textContent = text;
}

function setBusy(value) {
  busy = value;
  document.body.setAttribute("aria-busy", value);
}

async function refresh() {
  const answer = await ask(`state?${query}`);
  if (answer.ok) show(answer.content);
  else say(answer.content.error || "The server refuses this page.");
}

// Returns whether it is kept.
async function send(path, body) {
  setBusy(true);
  const answer = await ask(path, body);
  setBusy(false);
  if (answer.ok) {
    say("");
    show(answer.content);
    return true;
  }
  await refresh();
  say(answer.content.error || "The server refuses this.");
  return false;
}

async function mark(after) {
  const key = find("image").dataset.seen;
  if (busy || !key) return;
  if (await send("label", { visitor, key, before: WAITING, after })) done.push([key, after]);
  showUndo();
}

async function undo() {
  if (busy || !done.length || state.doing) return;
  const [key, before] = done.pop();
  await send("label", { visitor, key, before, after: WAITING });
  showUndo();
}

async function fit() {
  if (busy || find("fit").hidden) return;
  done = [];
  await send(`fit?${query}`, {});
}

function show(content) {
  state = content;
  const total = `${state.labels} labels in all`;
  const doing = { fit: "A classifier learns from the labels.", ask: "The next images are chosen." };
  const images = state.images.length > 0;
  const round = `${state.size - state.left} of ${state.size} in this round`;
  find("title").textContent = images ? "Which class is this image?" : "Label images";
  document.body.classList.toggle("waiting", Boolean(state.doing));
  find("progress").textContent = `${state.doing ? "Between two rounds" : round}; ${total}`;
  find("wait").textContent = state.doing
    ? `${doing[state.doing]}\nThe next image appears here by itself.`
    : "This round is done.\nFit and ask again: this makes a classifier of your labels, and chooses the next images.";
  find("bar").value = state.size ? (state.size - state.left) / state.size : 0;
  if (state.doing) find("bar").removeAttribute("value");
  if (state.fault && !state.doing) say(state.fault);
  showAdvice();
  find("fit").hidden = images || Boolean(state.doing);
  find("marks").hidden = Boolean(state.doing);
  find("wait").hidden = images;
  find("classes").hidden = !images;
  showImage(images ? state.images[0] : "");
  for (const key of state.images.slice(1)) new Image().src = `images/${key}`;
  showUndo();
  clearTimeout(timer);
  if (!images) timer = setTimeout(refresh, 1000);  // other pages may have begun a fit
}

// Open until the first label of a round.
function showAdvice() {
  const [estimate, ...forecast] = state.advice;
  find("advice").hidden = !estimate;
  find("advice").open = state.left === state.size;
  find("estimate").textContent = estimate || "";
  find("forecast").replaceChildren(...forecast.map((line) => {
    const item = document.createElement("li");
    item.textContent = line;
    return item;
  }));
}

function showUndo() {
  find("undo").disabled = !done.length;
  for (const button of document.querySelectorAll("#classes button, #none, #skip")) {
    button.disabled = !state.images.length;
  }
}

// An image can be labelled once it is seen.
function showImage(key) {
  const image = find("image");
  image.hidden = !key;
  if (key && key === image.dataset.seen) return;
  image.dataset.seen = "";
  if (!key) return;
  image.onload = () => { image.dataset.seen = key; };
  image.onerror = () => {
    image.dataset.seen = key;
    say("This image cannot be read: skip it.");
  };
  image.src = `images/${key}`;
}

function showClasses() {
  const buttons = classes.map((name, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    if (place < KEYS.length) {
      const key = document.createElement("kbd");
      key.textContent = KEYS[place];
      button.prepend(key);
    }
    button.onclick = () => { button.blur(); mark([name, ""]); };
    return button;
  });
  find("classes").replaceChildren(...buttons);
  const filter = find("filter");
  filter.hidden = classes.length <= KEYS.length;
  const visible = () => buttons.filter((button) => !button.hidden);
  filter.oninput = () => {
    const text = filter.value.toLowerCase();
    buttons.forEach((button, place) => { button.hidden = !classes[place].toLowerCase().includes(text); });
  };
  filter.onkeydown = (event) => {
    if (event.key === "Enter" && filter.value && visible().length) visible()[0].click();
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.preventDefault();
    event.stopPropagation();
    filter.value = "";
    filter.oninput();
    filter.blur();
  };
}

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target === find("filter")) return;
  const onButton = event.target instanceof HTMLButtonElement;
  if (onButton && (event.key === " " || event.key === "Enter")) return;
  const place = event.key.length === 1 ? KEYS.indexOf(event.key.toLowerCase()) : -1;
  if (place >= 0 && place < classes.length) mark([classes[place], ""]);
  else if (event.key === "0") mark(NONE);
  else if (event.key === " ") mark(SKIPPED);
  else if (event.key === "Backspace") undo();
  else if (event.key === "Enter") fit();
  else if (event.key === "/" && !find("filter").hidden) find("filter").focus();
  else return;
  event.preventDefault();
});

for (const [id, act] of [["none", () => mark(NONE)], ["skip", () => mark(SKIPPED)], ["undo", undo], ["fit", fit]]) {
  find(id).onclick = () => { find(id).blur(); act(); };
}

(async () => {
  classes = (await ask("classes")).content;
  showClasses();
  await refresh();
})();
