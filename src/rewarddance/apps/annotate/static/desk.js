// The annotator's page. No library, no build step. The server chooses items and sides; this file shows them and sends answers.
"use strict";
const desk = document.getElementById("desk");
const at = (id) => document.getElementById(id);
let item = null, active = 0, answers = [], began = 0, busy = false, key = "", loading = 0;

function make(tag, values = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(values)) {
    if (name in node && name !== "list") node[name] = value; else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

const wait = (ms) => new Promise((done) => setTimeout(done, ms));

// Sends a request until the server answers. Keys make it safe to send a judgement again.
async function send(path, body) {
  for (let pause = 500; ; pause = Math.min(2 * pause, 8000)) {
    let answer = null;
    try {
      answer = await fetch(path, {
        method: "POST", headers: { "Content-Type": "application/json", "X-CSRF-Token": desk.dataset.csrf },
        body: JSON.stringify(body || {}),
      });
    } catch { /* the server cannot be reached */ }
    if (answer && answer.ok) return answer.json();
    if (answer && answer.status !== 429 && answer.status < 500) {
      const problem = await answer.json().catch(() => ({}));
      const detail = typeof problem.detail === "string" ? problem.detail : "the answer was not accepted";
      throw Object.assign(new Error(detail), { status: answer.status });
    }
    say("Waiting for the server. Your answer is kept here.", true);
    await wait(pause);
  }
}

async function turn(path, body) {
  if (busy) return;
  busy = true;
  try {
    const work = await send(path, body);
    say("");
    show(work);
  } catch (error) { failed(error); } finally { busy = false; }
}

function failed(error) {
  if (error.status === 401) say("Your session has ended. Open your link again; this answer is not saved.", true);
  else say(error.message, true);
}

function show(work) {
  item = work.item;
  const all = work.done + work.remaining;
  at("bar").max = Math.max(1, all);
  at("bar").value = work.done;
  at("count").textContent = `${work.done} done, ${work.remaining} left`;
  at("undo").disabled = work.done === 0;
  at("questions").replaceChildren();
  at("pictures").replaceChildren();
  player.open([], 1);
  at("work").classList.toggle("ended", !item);
  at("view").classList.remove("with-given");
  if (!item) {
    at("prompt").textContent = work.done ? "Thank you. Nothing is left to judge." : "There is nothing to judge at the moment.";
    at("prompt").focus();
    return;
  }
  key = crypto.randomUUID ? crypto.randomUUID() : Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
  at("prompt").textContent = item.prompt || `Which ${noun()} is better?`;
  zoom.reset();
  showMedia();
  answers = item.criteria.map((name) => (item.answers && item.answers[name]) || empty());
  item.criteria.forEach((name, index) => at("questions").append(question(name, index)));
  const submit = make("button", { type: "submit", className: "main", id: "submit" }, "Submit ", make("kbd", {}, "Enter"));
  at("questions").append(make("div", { className: "submit" }, submit));
  active = 0;
  refresh();
  at("prompt").focus({ preventScroll: true });
}

const empty = () => (item.task === "ranking" ? { ranks: item.media.map(() => 0) } : {});

const noun = () => (item.fps ? "clip" : "picture");
const named = (place) => `${item.fps ? "Clip" : "Picture"} ${place + 1}`;

function showMedia() {
  const num = item.media.length, given = item.given.length, narrow = innerWidth <= 640;
  const columns = num === 1 ? 1 : num <= 2 || narrow ? 2 : num === 4 ? 4 : Math.min(num, 3);
  const rows = Math.ceil(num / columns);
  const high = rows + (given && narrow && num > 1 ? 1 : 0); // on a phone a given picture has a row with the prompt
  const side = Math.max(120, Math.floor((innerHeight * (item.criteria.length > 2 ? 0.36 : item.criteria.length > 1 ? 0.45 : 0.6) - (item.fps ? 60 : 0)) / high));
  loading = num + given;
  began = performance.now();
  const values = { "--columns": columns + (given ? 1 : 0), "--rows": rows, "--side": `${side}px` };
  for (const [name, value] of Object.entries(values)) at("view").style.setProperty(name, value);
  at("view").style.removeProperty("--aspect");
  at("view").classList.toggle("with-given", given > 0);
  if (given) at("pictures").append(make("div", { id: "given" }, ...item.given.map(newGiven)));
  item.media.forEach((token, place) => {
    const picture = item.fps ? newClip(place) : make("img", { alt: named(place), draggable: false });
    load(picture, token, item.fps ? "canplaythrough" : "load", noun());
    if (item.fps) player.play(picture); // some browsers load a clip only when it plays
    const caption = num === 1 ? [] : [make("figcaption", {}, num === 2 ? ["Left", "Right"][place] : `${place + 1}`, make("strong", { className: "place" }))];
    const frame = make("div", { className: "frame" }, picture);
    at("pictures").append(make("figure", { className: place % columns ? "" : "begins" }, frame, ...caption));
  });
  if (item.fps) player.open([...document.querySelectorAll("video")], item.fps);
}

// Loads a picture or clip of the item, and tries again until it is there.
function load(picture, token, event, what) {
  const assignment = item.assignment;
  let pause = 1000;
  const current = () => item && item.assignment === assignment && picture.isConnected;
  picture.addEventListener(event, () => {
    picture.classList.toggle("pixels", picture.naturalWidth <= 128);
    if (current()) loaded();
  }, { once: true });
  picture.addEventListener("error", async () => {
    if (!current()) return;
    say(`A ${what} could not be loaded. The page tries again.`, true);
    await wait(pause);
    pause = Math.min(2 * pause, 16000);
    if (current()) picture.src = `/media/${token}?again=${Date.now()}`;
  });
  picture.src = `/media/${token}`;
}

// A picture that all candidates were made from, as large as they are and zoomed with them.
function newGiven(token, place) {
  const several = item.given.length > 1 ? ` ${place + 1}` : "";
  const title = (item.fps && !several ? "First frame" : "Given picture") + several;
  const one = item.media.length === 1 ? `the ${noun()}` : `each ${noun()}`;
  const purpose = item.fps && !several ? `${one} should begin with it.` : `${one} was made from it.`;
  const picture = make("img", { alt: `${title}: ${purpose}`, draggable: false });
  load(picture, token, "load", "picture");
  const caption = make("figcaption", {}, make("span", {}, make("strong", {}, `${title}:`), ` ${purpose}`));
  return make("figure", {}, make("div", { className: "frame source" }, picture), caption);
}

// A clip stops as soon as it can be played to its end, and begins again when all others can be, too.
function newClip(place) {
  const clip = make("video", { muted: true, playsInline: true, preload: "auto", disablePictureInPicture: true, ariaLabel: named(place) });
  clip.addEventListener("loadedmetadata", () => at("view").style.setProperty("--aspect", clip.videoWidth / clip.videoHeight));
  clip.addEventListener("canplaythrough", () => clip.pause(), { once: true });
  return clip;
}

// A picture has come. An answer can be sent only when all are there; the time of judging begins then.
function loaded() {
  loading -= 1;
  if (loading) return;
  began = performance.now();
  say("");
  refresh();
  if (item.fps) player.start();
}

const PICKS = [["first", "Left is better", "←"], ["tie", "Tie", "T"], ["both_bad", "Both bad", "B"], ["second", "Right is better", "→"]];
const STRENGTHS = [[0, "Slightly", "1"], [0.5, "Clearly", "2"], [1, "Much", "3"]];
const WORDS = { overall: "Overall, which one is better?" };
const plain = (criterion) => criterion.replaceAll("_", " ");

function question(name, index) {
  const several = item.criteria.length > 1;
  const title = item.task === "pairwise" && !several ? WORDS[name] || `Which one is better by ${plain(name)}?` : plain(name);
  const box = make("fieldset", { className: several ? "several" : "" }, make("legend", { className: several ? "" : "single" }, title));
  box.addEventListener("focusin", () => { active = index; refresh(); });
  if (item.task === "ranking") {
    const buttons = item.media.map((_, place) => make("button", { type: "button", onclick: () => rank(index, place) }, `${named(place)} `, make("span", { className: "place" })));
    box.append(make("div", { className: "options" }, ...buttons, make("button", { type: "button", className: "plain", onclick: () => unrank(index) }, "Take out")));
    return box;
  }
  if (item.task === "rating") {
    box.append(options(index, "rating", [1, 2, 3, 4, 5].map((n) => [n, { 1: "1 poor", 5: "5 excellent" }[n] || `${n}`, ""])));
    return box;
  }
  const picks = options(index, "choice", PICKS);
  picks.classList.add("choice");
  box.append(picks);
  const strength = options(index, "strength", STRENGTHS);
  strength.classList.add("strength");
  strength.setAttribute("role", "group");
  strength.setAttribute("aria-label", "How much better");
  box.append(strength);
  return box;
}

function options(index, field, choices) {
  const labels = choices.map(([value, text, letter]) => {
    const input = make("input", { type: "radio", name: `${field}-${index}`, value: String(value) });
    input.addEventListener("change", () => { set(index, field, value); if (pointer) input.blur(); });
    return make("label", {}, input, text, ...(letter ? [make("kbd", {}, letter)] : []));
  });
  return make("div", { className: "options" }, ...labels);
}

function set(index, field, value) {
  const answer = answers[index];
  if (field === "choice" && answer.choice !== value) delete answer.strength; // it was said about another choice
  answer[field] = value;
  refresh();
}

function rank(index, place, level = false) {
  const ranks = answers[index].ranks;
  if (!(place in ranks) || ranks[place]) return;
  const last = Math.max(...ranks);
  ranks[place] = level && last ? last : ranks.filter((r) => r).length + 1;
  answers[index].last = [...(answers[index].last || []), place];
  answers[index].level = false;
  refresh();
}

function unrank(index) {
  const answer = answers[index], last = answer.last && answer.last.pop();
  if (last === undefined) answer.ranks = answer.ranks.map(() => 0);
  else answer.ranks[last] = 0;
  refresh();
}

const complete = (answer) => item.task === "pairwise" ? !!answer.choice : item.task === "rating" ? !!answer.rating : answer.ranks.every((r) => r > 0);

function refresh() {
  document.querySelectorAll("fieldset").forEach((box, index) => {
    const answer = answers[index];
    box.classList.toggle("active", index === active);
    for (const input of box.querySelectorAll("input")) {
      input.checked = String(answer[input.name.split("-")[0]]) === input.value;
      if (input.name.startsWith("strength")) input.disabled = !["first", "second"].includes(answer.choice);
    }
    const strength = box.querySelector(".strength");
    if (strength) strength.classList.toggle("idle", !["first", "second"].includes(answer.choice));
    box.querySelectorAll("button .place").forEach((node, place) => { node.textContent = answer.ranks[place] ? `is number ${answer.ranks[place]}` : ""; });
  });
  const answer = answers[active], num = item.media.length;
  document.querySelectorAll(".frame:not(.source)").forEach((frame, place) => {
    const ranked = answer.ranks ? answer.ranks[place] === 1 : false;
    frame.classList.toggle("chosen", answer.choice === ["first", "second"][place] && num === 2 || ranked);
  });
  document.querySelectorAll("figcaption .place").forEach((node, place) => { node.textContent = answer.ranks && answer.ranks[place] ? `number ${answer.ranks[place]}` : ""; });
  if (at("submit")) at("submit").disabled = loading > 0 || !answers.every(complete);
}

async function submit() {
  if (!item || busy) return;
  if (loading) { say(`Please wait until all ${noun()}s are loaded.`); return; }
  const open = answers.findIndex((answer) => !complete(answer));
  if (open >= 0) { active = open; refresh(); say(item.criteria.length > 1 ? `Please answer: ${plain(item.criteria[open])}` : "Please choose an answer."); return; }
  busy = true;
  const given = {};
  item.criteria.forEach((name, index) => { const { last, level, ...answer } = answers[index]; given[name] = answer; });
  const seconds = Math.min(86400, (performance.now() - began) / 1000);
  try {
    await send("/api/judgements", { assignment: item.assignment, key, answers: given, seconds });
  } catch (error) {
    busy = false;
    if (error.status !== 409 && error.status !== 404) { failed(error); return; }
  }
  busy = false;
  await turn("/api/next");
}

// All pictures are zoomed and moved together. `x`, `y`: the shift in shares of a frame's width and height.
const zoom = {
  scale: 1, x: 0, y: 0,
  reset() { this.scale = 1; this.x = this.y = 0; this.apply(); },
  by(factor, px = 0.5, py = 0.5) {
    const next = Math.min(16, Math.max(1, this.scale * factor)), real = next / this.scale;
    this.x = px - (px - this.x) * real; this.y = py - (py - this.y) * real; this.scale = next;
    this.apply();
  },
  move(dx, dy) { this.x += dx; this.y += dy; this.apply(); },
  apply() {
    const least = 1 - this.scale;
    this.x = Math.min(0, Math.max(least, this.x)); this.y = Math.min(0, Math.max(least, this.y));
    document.querySelectorAll(".frame").forEach((frame) => {
      frame.firstChild.style.transform = `translate(${this.x * frame.clientWidth}px, ${this.y * frame.clientHeight}px) scale(${this.scale})`;
    });
    at("pictures").classList.toggle("zoomed", this.scale > 1);
  },
};

const fingers = new Map();
at("pictures").addEventListener("wheel", (event) => {
  const frame = event.target.closest(".frame");
  if (!frame) return;
  event.preventDefault();
  const box = frame.getBoundingClientRect();
  zoom.by(event.deltaY < 0 ? 1.2 : 1 / 1.2, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
}, { passive: false });
at("pictures").addEventListener("pointerdown", (event) => {
  const frame = event.target.closest(".frame");
  if (frame) { fingers.set(event.pointerId, { x: event.clientX, y: event.clientY }); frame.setPointerCapture(event.pointerId); }
});
at("pictures").addEventListener("pointermove", (event) => {
  const before = fingers.get(event.pointerId);
  if (!before) return;
  const frame = event.target.closest(".frame"), width = frame ? frame.clientWidth : 1, height = frame ? frame.clientHeight : 1;
  const now = { x: event.clientX, y: event.clientY };
  if (fingers.size === 2) {
    const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
    const apart = (a) => Math.hypot(a.x - other.x, a.y - other.y);
    if (apart(before) > 0) zoom.by(apart(now) / apart(before));
  } else if (zoom.scale > 1) zoom.move((now.x - before.x) / width, (now.y - before.y) / height);
  else if (event.pointerType === "touch") scrollBy(0, before.y - now.y);
  fingers.set(event.pointerId, now);
});
for (const name of ["pointerup", "pointercancel"]) at("pictures").addEventListener(name, (event) => fingers.delete(event.pointerId));
at("pictures").addEventListener("dblclick", () => (zoom.scale > 1 ? zoom.reset() : zoom.by(4)));

function common(pressed) {
  const steps = { "+": () => zoom.by(1.5), "-": () => zoom.by(1 / 1.5), "0": () => zoom.reset(), w: () => zoom.move(0, 0.15), s: () => zoom.move(0, -0.15), a: () => zoom.move(0.15, 0), d: () => zoom.move(-0.15, 0), u: () => turn("/api/undo"), p: () => player.toggle(), ",": () => player.step(-1), ".": () => player.step(1), "?": help };
  if (steps[pressed]) { steps[pressed](); return true; }
  return false;
}

function answerKey(pressed) {
  const index = active;
  if (item.task === "pairwise") {
    const pick = { ArrowLeft: "first", ArrowRight: "second", t: "tie", b: "both_bad" }[pressed];
    if (pick) { set(index, "choice", pick); return true; }
    if ("123".includes(pressed) && ["first", "second"].includes(answers[index].choice)) { set(index, "strength", STRENGTHS[pressed - 1][0]); return true; }
  } else if (item.task === "rating" && "12345".includes(pressed)) {
    set(index, "rating", Number(pressed));
    active = Math.min(index + 1, answers.length - 1);
    refresh();
    return true;
  } else if (item.task === "ranking") {
    if (/^[1-9]$/.test(pressed)) { rank(index, Number(pressed) - 1, answers[index].level); return true; }
    if (pressed === "=") { answers[index].level = true; say(`The next ${noun()} is level with the last one.`); return true; }
    if (pressed === "Backspace") { unrank(index); return true; }
  }
  if (answers.length > 1 && (pressed === "ArrowDown" || pressed === "ArrowUp")) {
    active = (index + (pressed === "ArrowDown" ? 1 : answers.length - 1)) % answers.length;
    refresh();
    return true;
  }
  return false;
}

// After a click the arrow keys choose a side; after Tab they move within the group, as people who use no mouse expect.
let pointer = false;
document.addEventListener("pointerdown", () => { pointer = true; }, true);

function help() {
  const box = at("help");
  box.hidden = !box.hidden;
  at("help-button").setAttribute("aria-expanded", String(!box.hidden));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || busy) return;
  pointer = false;
  if (event.target.matches("input[type=radio]") && event.key.startsWith("Arrow")) return;
  const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const onButton = event.target.closest("button, a, summary");
  if (pressed === "Enter" && item && !onButton) {
    event.preventDefault();
    const open = answers.findIndex((answer) => !complete(answer));
    if (open >= 0 && complete(answers[active])) { active = open; refresh(); } else submit();
  } else if ((item && answerKey(pressed)) || common(pressed)) event.preventDefault();
});
at("questions").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
at("undo").addEventListener("click", () => turn("/api/undo"));
at("help-button").addEventListener("click", help);
addEventListener("resize", () => zoom.apply());
turn("/api/next");
