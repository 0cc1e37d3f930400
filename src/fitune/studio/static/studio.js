// What the pages do beyond reading: pieces that change are put in place, values are shown under the pointer, a part of a
// curve is shown larger. Without this file every page still reads.
"use strict";

const note = (text) => { const place = document.getElementById("note"); if (place.textContent !== text) place.textContent = text; };

// ---- live pieces
function put(id, html) {
  const place = document.getElementById(id);
  if (!place) return;
  const marked = new Set([...place.querySelectorAll("input:checked")].map((one) => one.name + "=" + one.value));
  const opened = new Set([...place.querySelectorAll("details[open]")].map((one) => one.id));
  const zoomed = new Map([...place.querySelectorAll("figure.zoomed")].map((one) => [one.dataset.key, one]));
  const log = place.querySelector("pre.log");
  const atEnd = !log || log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
  const focused = place.contains(document.activeElement) ? document.activeElement.getAttribute("data-focus") : null;
  place.innerHTML = html;
  for (const box of place.querySelectorAll("input")) if (marked.has(box.name + "=" + box.value)) box.checked = true;
  for (const one of place.querySelectorAll("details")) if (opened.has(one.id)) one.open = true;
  for (const one of place.querySelectorAll("figure.chart")) {
    const shown = zoomed.get(one.dataset.key);
    if (shown) { shown.whole = one; one.replaceWith(shown); }
  }
  if (focused) place.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
  const after = place.querySelector("pre.log");
  if (after && atEnd) after.scrollTop = after.scrollHeight;
}

function listen(address) {
  const source = new EventSource(address);
  source.addEventListener("pieces", (event) => {
    note("");
    for (const [id, html] of Object.entries(JSON.parse(event.data))) put(id, html);
    document.documentElement.dataset.lines = event.lastEventId;
  });
  source.addEventListener("gone", () => { source.close(); note("This run is no longer in its folder."); });
  source.addEventListener("error", () => {
    note("The studio does not answer. Runs go on without it; this page goes on when it is back.");
    if (source.readyState === EventSource.CLOSED)
      fetch(location.href, { method: "HEAD" }).then((answer) => {
        if (answer.status === 401) note("The studio was started again: open the new address that it printed in the terminal.");
        else setTimeout(() => listen(address), 2000);
      }).catch(() => setTimeout(() => listen(address), 2000));
  });
}
for (const place of document.querySelectorAll("[data-events]")) listen(place.dataset.events);
for (const log of document.querySelectorAll("pre.log")) log.scrollTop = log.scrollHeight;

// ---- charts: values under the pointer, a span that is drawn across is shown larger
const SVG = "http://www.w3.org/2000/svg";
const short = (value) => Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : Number(value.toPrecision(4)).toString();
let held = null;

function frameOf(figure) {
  if (!figure.frame) figure.frame = JSON.parse(figure.dataset.chart);
  return figure.frame;
}
function stepAt(figure, event) {
  const { frame: [x0, x1], box: [width, , left, right] } = frameOf(figure);
  const svg = figure.querySelector("svg"), bounds = svg.getBoundingClientRect();
  const x = (event.clientX - bounds.left) / bounds.width * width;
  return Math.min(x1, Math.max(x0, x0 + (x - left) / (width - left - right) * (x1 - x0)));
}
function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (low < high) { const middle = (low + high) >> 1; if (xs[middle] < x) low = middle + 1; else high = middle; }
  return low > 0 && x - xs[low - 1] < xs[low] - x ? low - 1 : low;
}
function draw(figure, kind, attributes) {
  const svg = figure.querySelector("svg");
  let one = svg.querySelector("." + kind);
  if (!one) { one = document.createElementNS(SVG, kind === "span" ? "rect" : "line"); one.setAttribute("class", kind); svg.append(one); }
  for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
}
function place(figure, x) {
  const { frame: [x0, x1], box: [width, , left, right] } = frameOf(figure);
  return left + (x - x0) / ((x1 - x0) || 1) * (width - left - right);
}
function show(figure, x) {
  const { box: [, height, , , top, bottom], lines } = frameOf(figure);
  const at = lines.map(([label, xs, ys]) => { const i = nearest(xs, x); return [label, xs[i], ys[i]]; });
  let tip = figure.querySelector(".tip");
  if (!tip) { tip = document.createElement("output"); tip.className = "tip"; figure.append(tip); }
  tip.textContent = lines.length === 1 ? `step ${short(at[0][1])}: ${short(at[0][2])}` : at.map(([label, step, y]) => `${label}, step ${short(step)}: ${short(y)}`).join("\n");
  const line = place(figure, at[0][1]);
  draw(figure, "cursor", { x1: line, x2: line, y1: top, y2: height - bottom });
  figure.at = at[0][1];
}
function hide(figure) { figure.querySelector(".tip")?.remove(); figure.querySelector(".cursor")?.remove(); figure.querySelector(".span")?.remove(); }
async function zoom(figure, from, to) {
  const base = document.querySelector("[data-charts]")?.dataset.charts;
  if (!base) return;
  const query = new URLSearchParams({ key: figure.dataset.key, from, to });
  const answer = await fetch(`${base}?${query}`);
  if (!answer.ok) return;
  const holder = document.createElement("div");
  holder.innerHTML = await answer.text();
  const made = holder.firstElementChild;
  if (!made) return;
  made.classList.add("zoomed");
  const back = document.createElement("button");
  back.textContent = "all steps"; back.className = "back"; back.type = "button";
  back.addEventListener("click", () => made.replaceWith(made.whole));
  made.append(back);
  made.whole = figure.whole ?? figure;
  figure.replaceWith(made);
}

document.addEventListener("pointermove", (event) => {
  const figure = event.target.closest?.("figure[data-chart]");
  if (held && held.figure !== figure) { hide(held.figure); held = held.down === undefined ? null : held; }
  if (!figure) return;
  show(figure, stepAt(figure, event));
  if (held?.down !== undefined && held.figure === figure) {
    const { box: [, height, , , top, bottom] } = frameOf(figure);
    const [a, b] = [place(figure, held.down), place(figure, stepAt(figure, event))].sort((one, other) => one - other);
    draw(figure, "span", { x: a, width: b - a, y: top, height: height - bottom - top });
  } else held = { figure };
});
document.addEventListener("pointerdown", (event) => {
  const figure = event.target.closest?.("figure[data-chart] svg")?.parentElement;
  if (figure && event.button === 0 && event.pointerType === "mouse") { held = { figure, down: stepAt(figure, event) }; event.preventDefault(); }
});
document.addEventListener("pointerup", (event) => {
  if (held?.down === undefined) return;
  const { figure, down } = held, up = stepAt(figure, event), { frame: [x0, x1] } = frameOf(figure);
  held = null; hide(figure);
  if (Math.abs(up - down) > (x1 - x0) / 50) zoom(figure, Math.min(up, down), Math.max(up, down));
});

// ---- the form of a new run
const form = document.getElementById("new");
if (form) {
  const memory = document.getElementById("memory");
  const data = () => new URLSearchParams(new FormData(form));
  const send = (path, more) => {
    const body = data();
    for (const [name, value] of Object.entries(more ?? {})) body.set(name, value);
    return fetch(path, { method: "POST", body });
  };
  const touched = new Set();
  let checking = 0, planning = 0, checkTimer, planTimer;
  async function check() {
    const number = ++checking, answer = await send("/new/check");
    if (!answer.ok || number !== checking) return;
    const told = await answer.json();
    for (const place of form.querySelectorAll("[data-fault]")) {
      const key = place.dataset.fault, faults = told.faults[key] ?? [];
      place.textContent = key === "" || touched.has(key) || key in told.faults && document.getElementById(key)?.value ? faults.map((one) => `${key} ${one}`.trim()).join("\n") : "";
      if (faults.length) place.closest("details.group")?.setAttribute("open", "");
    }
    document.getElementById("command").textContent = told.command;
    document.getElementById("recipe").textContent = told.recipe;
    document.getElementById("faults").textContent = "";
  }
  async function plan(more) {
    if (!form.elements["data.train"].value.trim()) return;
    const number = ++planning;
    memory.classList.add("busy"); memory.setAttribute("aria-busy", "true");
    try {
      const answer = await send("/new/plan", more), html = await answer.text();
      if (number === planning && html && answer.ok) memory.innerHTML = html;
    } finally {
      if (number === planning) { memory.classList.remove("busy"); memory.removeAttribute("aria-busy"); }
    }
  }
  form.addEventListener("input", (event) => {
    if (event.target.id === "search") return search(event.target.value);
    touched.add(event.target.name);
    clearTimeout(checkTimer); clearTimeout(planTimer);
    checkTimer = setTimeout(check, 250);
    planTimer = setTimeout(plan, 1200);
  });
  form.addEventListener("click", (event) => {
    if (event.target.closest(".js-plan")) { event.preventDefault(); plan(); }
    if (event.target.closest(".js-ladder")) plan({ ladder: "1" });
  });
  function search(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    for (const group of form.querySelectorAll("details.group")) {
      let found = 0;
      for (const one of group.querySelectorAll("[data-setting]")) {
        one.hidden = !words.every((word) => one.dataset.setting.includes(word));
        found += !one.hidden;
      }
      group.hidden = words.length > 0 && found === 0;
      group.open = words.length > 0 && found > 0;
    }
  }
  document.getElementById("search").addEventListener("keydown", (event) => { if (event.key === "Enter") event.preventDefault(); });
  if (form.elements["data.train"].value) { check(); plan(); }
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const place = document.getElementById(button.dataset.copy);
  try { await navigator.clipboard.writeText(place.textContent); button.textContent = "Copied"; }
  catch { getSelection().selectAllChildren(place); button.textContent = "Marked: copy with Ctrl-C"; }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});

// ---- forms whose answer is a piece of the page
document.addEventListener("submit", async (event) => {
  const sent = event.target, button = event.submitter, target = sent.dataset.piece;
  if (!target || button?.getAttribute("formaction")) return;
  event.preventDefault();
  const place = document.getElementById(target);
  place.setAttribute("aria-busy", "true"); place.classList.add("busy"); button.disabled = true;
  const began = performance.now(), word = button.textContent;
  const ticking = setInterval(() => { button.textContent = `${word}, ${Math.round((performance.now() - began) / 1000)} s`; }, 1000);
  try {
    const answer = await fetch(sent.action, { method: "POST", body: new URLSearchParams(new FormData(sent)) });
    const html = await answer.text();
    if (answer.ok) { if (html) place.innerHTML = html; }
    else {
      const told = new DOMParser().parseFromString(html, "text/html").querySelector("main p.prewrap")?.textContent ?? html;
      place.replaceChildren(Object.assign(document.createElement("p"), { className: "bad prewrap", textContent: told }));
    }
  } catch { note("The studio does not answer."); }
  finally {
    clearInterval(ticking); button.textContent = word; button.disabled = false;
    place.removeAttribute("aria-busy"); place.classList.remove("busy");
  }
});

// ---- a dropped file
const drop = document.getElementById("drop");
if (drop) {
  const told = document.getElementById("dropped"), source = document.getElementById("source");
  const take = async (file) => {
    if (!file) return;
    told.textContent = `copying ${file.name} …`;
    const answer = await fetch(`/data/files/${encodeURIComponent(file.name)}`, { method: "PUT", body: file });
    if (answer.ok) {
      source.value = (await answer.json()).name;
      told.textContent = `copied to ${source.value}`;
      source.form.requestSubmit(source.form.querySelector("button.primary"));
    } else told.textContent = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main p.prewrap")?.textContent ?? "it could not be copied";
  };
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); take(event.dataTransfer.files[0]); });
  document.getElementById("file").addEventListener("change", (event) => take(event.target.files[0]));
  if (source.value) source.form.requestSubmit(source.form.querySelector("button.primary"));
}

// ---- chat
const chat = document.getElementById("chat");
if (chat) {
  const talk = document.getElementById("talk"), stop = document.getElementById("stop-answer"), tokens = document.getElementById("tokens");
  let answering = null;
  const add = (parent, kind, text) => { const one = document.createElement("div"); one.className = kind; one.textContent = text; parent.append(one); return one; };
  async function say(body) {
    const question = body.get("text"), sides = { both: ["base", "adapter"] }[body.get("side")] ?? [body.get("side")];
    add(talk, "asked", question);
    const row = add(talk, "answers", ""), places = {};
    for (const side of sides) { const one = add(row, "answer", ""); add(one, "who", side); places[side] = add(one, "what", "…"); }
    answering = new AbortController(); stop.hidden = false;
    try {
      const answer = await fetch(chat.action, { method: "POST", body, signal: answering.signal });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      const begun = new Set();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        for (const line of lines.filter(Boolean)) {
          const told = JSON.parse(line), place = places[told.side] ?? places[sides[0]];
          if ("piece" in told) { if (!begun.has(told.side)) place.textContent = ""; begun.add(told.side); place.textContent += told.piece; }
          else if (told.error) { place.textContent = told.error; place.classList.add("bad"); for (const one of Object.values(places)) if (one.textContent === "…") one.textContent = ""; }
          else if (told.text !== undefined) { place.textContent = told.text; if (!told.stopped) add(place.parentElement, "dim small", "cut off"); place.parentElement.classList.add("done"); }
        }
        talk.scrollTop = talk.scrollHeight;
      }
    } catch (error) { if (error.name !== "AbortError") note("The studio does not answer."); }
    finally { answering = null; stop.hidden = true; }
  }
  chat.addEventListener("submit", async (event) => {
    event.preventDefault();
    const body = new URLSearchParams(new FormData(chat)), button = event.submitter;
    if (!body.get("text").trim() || answering) return;
    if (button?.getAttribute("formaction")) {
      tokens.textContent = "asking …";
      const answer = await fetch(button.formAction, { method: "POST", body });
      if (answer.ok) tokens.innerHTML = await answer.text(); else tokens.textContent = "no answer";
      return;
    }
    chat.elements.text.value = "";
    say(body);
  });
  chat.elements.text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); chat.requestSubmit(chat.querySelector("button.primary")); }
  });
  stop.addEventListener("click", () => answering?.abort());
  document.getElementById("clear-chat").addEventListener("click", async () => {
    await fetch(chat.action, { method: "POST", body: new URLSearchParams({ clear: "1" }) });
    talk.replaceChildren(); tokens.replaceChildren();
  });
}
document.documentElement.classList.add("js");
