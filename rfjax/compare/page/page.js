"use strict";
// The state is the votes alone: one record for each pair and question, in memory and, where the browser allows it, each
// under a key of its own in localStorage. So two tabs of one page never write over each other's votes: of two votes on
// one question the later counts, in every tab. An answer that was taken back is a record with an empty choice.

const study = JSON.parse(document.getElementById("study").textContent);
const at = (id) => document.getElementById(id);
const PREFIX = `rfjax-compare|${study.study}|${study.rater}|`;
const WAIT = 200; // milliseconds for which a new question takes no answer, so that a double tap answers only once
const SMALL = 160; // pixels: below, an enlarged image shows its pixels as squares
const CHOICES = ["left", "tie", "right"];

const items = [];
for (const pair of study.pairs) {
  for (const question of pair.questions) items.push({ ...pair, question, key: `${PREFIX}${pair.pair}|${question}` });
}
const votes = new Map(); // an item's key -> {choice, seconds, at}
const skipped = new Set(); // keys of items left for later, in this tab
let storing = true; // whether this browser keeps the votes
let unsaved = 0; // votes since the last saved file
let shown = null; // the item on the screen
let shownAt = 0; // when its images appeared
let ready = false; // whether it takes an answer

// -- storage

function keep(key) {
  try {
    localStorage.setItem(key, JSON.stringify(votes.get(key)));
  } catch (error) {
    storing = false;
  }
}

function canStore() {
  try {
    localStorage.setItem(`${PREFIX}try`, "1");
    const same = localStorage.getItem(`${PREFIX}try`) === "1";
    localStorage.removeItem(`${PREFIX}try`);
    return same;
  } catch (error) {
    return false;
  }
}

function parsed(text) {
  try {
    const vote = JSON.parse(text);
    const known = vote && (vote.choice === "" || CHOICES.includes(vote.choice));
    return known && typeof vote.at === "string" && typeof vote.seconds === "number" ? vote : null;
  } catch (error) {
    return null;
  }
}

// Takes what other tabs have stored. Votes in memory that the storage lacks are written again.
function join() {
  for (const item of items) {
    let stored = null;
    try {
      stored = parsed(localStorage.getItem(item.key));
    } catch (error) {
      storing = false;
    }
    const mine = votes.get(item.key);
    if (stored && (!mine || stored.at >= mine.at)) votes.set(item.key, stored);
    else if (mine && storing && (!stored || mine.at > stored.at)) keep(item.key);
  }
}

// -- votes

const answered = (item) => votes.has(item.key) && votes.get(item.key).choice !== "";

function latest() {
  let last = null;
  for (const item of items) {
    if (answered(item) && (!last || votes.get(item.key).at > votes.get(last.key).at)) last = item;
  }
  return last;
}

// Times of one page never repeat, so the order of votes is known.
function now() {
  let time = Date.now();
  for (const vote of votes.values()) time = Math.max(time, Date.parse(vote.at) + 1);
  return new Date(time).toISOString();
}

function record(item, choice, seconds) {
  votes.set(item.key, { choice, seconds, at: now() });
  unsaved += 1;
  if (storing) keep(item.key);
}

function vote(choice) {
  if (!shown || !ready) return;
  record(shown, choice, Math.round((performance.now() - shownAt) / 100) / 10);
  at("saved").textContent = "";
  show();
}

function undo() {
  join();
  const last = latest();
  if (!last) return;
  record(last, "", 0);
  skipped.delete(last.key);
  show(last);
}

function csv() {
  const row = (item) => {
    const { choice, seconds, at } = votes.get(item.key);
    const values = { ...item, study: study.study, rater: study.rater, choice, seconds, at };
    return study.columns.map((name) => values[name]).join(",");
  };
  const given = items.filter(answered).sort((a, b) => (votes.get(a.key).at < votes.get(b.key).at ? -1 : 1));
  return [study.columns.join(","), ...given.map(row)].join("\n") + "\n";
}

function save() {
  join();
  const part = study.pages > 1 ? `-${study.page}` : "";
  const name = `votes-${study.rater}${part}.csv`;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  unsaved = 0;
  at("saved").textContent = `Saved as ${name}, with ${items.filter(answered).length} answers. Look in the downloads.`;
}

// -- the screen

function source(image) {
  return study.images[image] || `${study.folder}${image}.webp`;
}

function load(id, image) {
  const element = at(id);
  element.src = source(image);
  return element.decode().then(() => {
    element.classList.toggle("small", Math.max(element.naturalWidth, element.naturalHeight) < SMALL);
  });
}

function setReady(value) {
  ready = value;
  for (const choice of CHOICES) at(`choose-${choice}`).setAttribute("aria-disabled", String(!value));
}

function show(wanted = null) {
  const open = items.filter((item) => !answered(item));
  const next = wanted || open.find((item) => !skipped.has(item.key)) || open[0] || null;
  const done = items.length - open.length;
  at("done").textContent = done;
  at("total").textContent = items.length;
  at("progress").max = Math.max(1, items.length);
  at("progress").value = done;
  at("progress").textContent = `${done} of ${items.length}`;
  at("intro").hidden = done > 0;
  at("undo").disabled = done === 0;
  at("text").value = csv();
  at("warning").hidden = storing;
  at("warning").textContent =
    "This browser keeps no answers: they are lost when the page is closed or loaded again. Save the answers before you " +
    "leave, or open the page in another browser, not in a private window.";
  at("vote").hidden = next === null;
  at("end").hidden = next !== null;
  if (next === null) {
    shown = null;
    setReady(false);
    at("skip").hidden = true;
    const others = study.pages - 1;
    at("more").textContent = others ? `This is page ${study.page} of ${study.pages}: please answer the others, too.` : "";
    at("save").textContent = "Save the answers";
    at("save").focus();
    return;
  }
  if (shown !== null && shown.key === next.key) return; // another tab has answered another question
  shown = next;
  setReady(false);
  at("trouble").hidden = true;
  at("skip").hidden = true;
  at("prompt").textContent = `The text: ${next.prompt}`;
  at("question").textContent = study.questions[next.question];
  Promise.all([load("left", next.left), load("right", next.right)]).then(
    () => setTimeout(() => appear(next), WAIT),
    () => cannotShow(next)
  );
}

function appear(item) {
  if (shown !== item) return;
  shownAt = performance.now() - WAIT;
  setReady(true);
}

function cannotShow(item) {
  if (shown !== item) return;
  const where = study.folder ? `Is the folder ${study.folder} beside this page? ` : "";
  at("trouble").textContent =
    `An image cannot be shown. ${where}If another browser cannot show it either, leave this pair for later and tell ` +
    "whoever gave you this page.";
  at("trouble").hidden = false;
  at("skip").hidden = false;
}

function skip() {
  if (!shown) return;
  skipped.delete(shown.key);
  skipped.add(shown.key);
  const open = items.filter((item) => !answered(item));
  const next = open.find((item) => !skipped.has(item.key)) || open.find((item) => item.key === [...skipped][0]);
  show(next || null);
}

// -- events

const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie" };

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.target.id === "text") return;
  if (event.key in KEYS && shown) vote(KEYS[event.key]);
  else if (event.key === "Backspace") undo();
  else return;
  event.preventDefault();
});
for (const choice of CHOICES) at(`choose-${choice}`).addEventListener("click", () => vote(choice));
at("undo").addEventListener("click", undo);
at("save").addEventListener("click", save);
at("skip").addEventListener("click", skip);
at("text").addEventListener("focus", () => at("text").select());
window.addEventListener("storage", (event) => {
  if (event.key !== null && !event.key.startsWith(PREFIX)) return;
  join();
  show(shown && !answered(shown) ? shown : null);
});
window.addEventListener("beforeunload", (event) => {
  if (!storing && unsaved > 0) event.preventDefault();
});

storing = canStore();
join();
show();
