/** The page's wiring: pictures come in, wait their turn, are asked about, and become cards that tell the answer. */

import { Card } from "./card.js";
import { el } from "./dom.js";
import * as service from "./service.js";
import { Settings } from "./settings.js";
import * as words from "./words.js";

const AT_ONCE = 4; // questions under way; the service makes batches of them
// How often a service that says it is ready may fail a question as if it were away: then it is the question's fault.
const BROKEN_CONNECTIONS = 2;
const REFUSALS = 5;
const $ = (id) => document.getElementById(id);

let cards = [];
let needsKey = false;
const watch = new service.Watch(serviceChanged);
const settings = new Settings(settingsChanged);

// ---- pictures in

function add(files) {
  if (!files.length) return;
  const fresh = [...files].map((file) => new Card(file, settings.model, { onRemove: remove, onRetry: askAgain }));
  cards = [...fresh, ...cards];
  $("cards").prepend(...fresh.map((card) => card.element));
  showAnswers();
  pump();
}

function remove(card) {
  const next = card.element.nextElementSibling ?? card.element.previousElementSibling;
  cards = cards.filter((other) => other !== card);
  card.remove();
  showAnswers();
  (next?.querySelector("button.icon") ?? $("pick")).focus(); // the focus is not lost with the button
  pump();
}

function showAnswers() {
  $("answers").hidden = cards.length === 0;
  $("clear").hidden = cards.length < 2;
  $("save").hidden = !cards.some((card) => card.answer);
  $("drop").classList.toggle("small", cards.length > 0);
}

async function addSample({ dataset: { sample, task, label } }) {
  settings.prefer(task, label); // for this picture: those that are here keep their models
  let picture;
  try {
    picture = await (await fetch(new URL(sample, import.meta.url))).blob();
  } catch {
    watch.lost(new service.Problem(0));
    return;
  }
  add([new File([picture], sample, { type: picture.type })]);
}

function listenForPictures() {
  $("pick").onclick = () => $("files").click();
  $("photograph").onclick = () => $("camera").click();
  for (const input of [$("files"), $("camera")]) {
    input.onchange = () => {
      add(input.files);
      input.value = ""; // so that the same file can be chosen again
    };
  }
  for (const sample of document.querySelectorAll(".sample")) {
    sample.onclick = () => addSample(sample);
  }
  document.addEventListener("paste", ({ clipboardData }) => add(clipboardData?.files ?? []));
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    $("dropping").hidden = false;
  });
  document.addEventListener("dragleave", (event) => { $("dropping").hidden = event.relatedTarget === null || $("dropping").hidden; });
  document.addEventListener("drop", (event) => {
    $("dropping").hidden = true;
    if (!carriesFiles(event)) return;
    event.preventDefault();
    add(event.dataTransfer.files);
  });
}

// ---- questions out

function askAgain(card) {
  card.abort?.abort();
  card.breaks = 0;
  card.wait("waiting");
  pump();
}

/** Another model is for every picture that is here; other parameters are asked of each one's own model. */
function settingsChanged(isOtherModel) {
  for (const card of cards) {
    if (isOtherModel) card.model = settings.model;
    card.abort?.abort();
    card.wait("waiting");
  }
  pump();
}

/** Starts what may start. Whatever waits for a key or for the service is started when that has come. */
function pump() {
  if (needsKey || watch.state !== "ready" || !settings.model) return;
  const free = AT_ONCE - cards.filter((card) => card.state === "asking").length;
  const due = cards.filter((card) => card.state === "waiting" && !(card.notBefore > performance.now()));
  for (const card of due.slice(0, Math.max(0, free))) {
    card.model = settings.served(card.model);
    askAbout(card, settings.question(card.model));
  }
}

async function askAbout(card, question) {
  const abort = new AbortController();
  card.abort = abort;
  card.begin();
  try {
    const picture = await card.file.arrayBuffer().catch(() => null);
    if (abort.signal.aborted) return;
    if (picture === null) card.fail(words.unreadableFile());
    else card.show(await service.ask(question.task, question.parameters, picture, abort.signal), question);
  } catch (problem) {
    if (abort.signal.aborted) return;
    if (!(problem instanceof service.Problem)) throw problem;
    // A version that is taken back leaves the names that the watch looks at as they were.
    if (problem.isOfModel && ++card.breaks === 1) {
      await learnModels();
      if (abort.signal.aborted) return;
      card.wait("waiting");
    } else {
      unanswered(card, question, problem);
    }
  }
  showAnswers();
  tell();
  pump();
}

function unanswered(card, question, problem) {
  if (question.parameters.explain && problem.code === "bad_parameter") {
    settings.hasNoMaps(question.parameters.model);
    card.wait("asking without a map");
  } else if (problem.isForKey) {
    card.wait("waiting for an API key");
    if (!problem.isOfFormerKey) askForKey();
  } else if (problem.isBusy) {
    const seconds = problem.retryAfterS ?? 1;
    card.notBefore = performance.now() + 1000 * seconds;
    card.wait(`the service is busy; asking again in ${seconds} s`);
    setTimeout(pump, 1000 * seconds + 10);
  } else if (problem.isAway && ++card.breaks <= (problem.status === 0 ? BROKEN_CONNECTIONS : REFUSALS)) {
    card.wait("waiting for the service");
    watch.lost(problem);
  } else {
    card.fail(problem.status === 0 ? words.connectionBroke(card.file) : words.failure(problem));
  }
}

/** All answers into a file, in the order that they are shown. */
function save() {
  const records = cards.map((card, place) => card.record(place)).filter(Boolean);
  const url = URL.createObjectURL(new Blob(records.map((record) => `${JSON.stringify(record)}\n`), { type: "application/jsonl" }));
  el("a", { href: url, download: "answers.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // the browser has it by then
}

/** Once all is answered, in one sentence, for those who listen. */
function tell() {
  if (cards.some((card) => card.state === "waiting" || card.state === "asking")) return;
  const failed = cards.filter((card) => card.state === "failed").length;
  if (cards.length === 1) announce(cards[0].summary());
  else announce(`${cards.length - failed} pictures answered${failed ? `, ${failed} not` : ""}. Newest: ${cards[0]?.summary()}`);
}

// ---- the service

async function serviceChanged(state, before) {
  showState(state);
  if (state !== "ready" || (before === "ready" && !watch.hasNews)) return;
  await learnModels();
  if (before === "away" && watch.state === "ready") announce("The service is back.");
  pump();
}

async function learnModels() {
  try {
    settings.setModels(await service.models());
    needsKey = false;
    $("key-form").hidden = true;
    $("forget-key").hidden = !service.hasKey();
  } catch (problem) {
    if (!(problem instanceof service.Problem)) throw problem; // a fault of the page's own
    if (problem.isForKey && problem.isOfFormerKey) return; // the key's own question is under way
    if (problem.isForKey) askForKey();
    else watch.lost(problem);
  }
}

function showState(state) {
  $("state").dataset.state = state;
  $("state-text").textContent = state === "ready" ? "ready" : "away";
  const wasHidden = $("banner").hidden;
  $("banner").hidden = state !== "away";
  if (state !== "away") return;
  const { title, text } = words.away(watch.problem);
  $("banner-title").textContent = title;
  $("banner-text").textContent = `${text} Looking again every few seconds.`;
  if (wasHidden) announce(`${title} ${text}`);
}

function askForKey() {
  const wrong = service.hasKey();
  needsKey = true;
  if (!$("key-form").hidden && !wrong) return;
  service.setKey("");
  $("forget-key").hidden = true;
  $("key-title").textContent = wrong ? "This key is not known" : "An API key, please";
  $("key-form").hidden = false;
  $("key").value = "";
  $("key").focus();
}

function announce(text) {
  $("announce").textContent = text;
}

function listenForTheRest() {
  $("banner-again").onclick = () => watch.look();
  $("save").onclick = save;
  $("clear").onclick = () => {
    for (const card of cards) card.remove();
    cards = [];
    showAnswers();
    $("pick").focus();
  };
  $("key-form").onsubmit = (event) => {
    event.preventDefault();
    const given = $("key").value.trim();
    if (!/^[!-~]+$/.test(given)) { // no header can carry it
      $("key").value = "";
      $("key-title").textContent = "This key is not known";
      return;
    }
    service.setKey(given);
    serviceChanged(watch.state, "unknown");
  };
  $("forget-key").onclick = () => {
    service.setKey("");
    askForKey();
  };
}

listenForPictures();
listenForTheRest();
watch.start();
