/** One picture on the page: itself, its labels, where the network looked, the times, and the question as code. */

import { bytes, cross, el, percent } from "./dom.js";
import { drawHeatMap, legendGradient } from "./heatmap.js";
import * as snippets from "./snippets.js";

const NO_PREVIEW = { failed: "No preview.", other: "No preview: this browser cannot show this kind of file." };
const STAGE_NAMES = { browser: "waited in the browser", fetch: "fetch", decode: "decode", queue: "queue", infer: "infer", other: "other", network: "network" };
let count = 0;

export class Card {
  /** `state`: waiting, asking, answered or failed. `onRemove` and `onRetry` are told of the buttons. */
  constructor(file, model, { onRemove, onRetry }) {
    this.file = file;
    this.model = model; // whom to ask; undefined while none is known
    this.name = file.name || "pasted picture";
    this.state = "waiting";
    this.breaks = 0; // times that the service, or the model, went away over this picture
    this.abort = null;
    this.chosen = 0;
    this.onRetry = onRetry;
    this.url = URL.createObjectURL(file);
    this.#build(onRemove);
  }

  #build(onRemove) {
    const id = `card-${++count}`;
    this.image = el("img", { alt: "", src: this.url });
    this.canvas = el("canvas", { class: "map", hidden: true, "aria-hidden": "true" });
    this.frame = el("div", { class: "frame" }, this.image, this.canvas);
    this.image.addEventListener("load", () => this.#setShape(this.image.naturalWidth, this.image.naturalHeight));
    this.image.addEventListener("error", () => this.#cannotShow());
    this.facts = el("p", { class: "facts" }, bytes(this.file.size));
    this.body = el("div", { class: "card-body" });
    this.figure = el("div", { class: "picture" }, this.frame);
    this.element = el("article", { class: "card", "aria-labelledby": id, "aria-busy": "true" },
      this.figure,
      el("div", { class: "card-head" },
        el("div", {}, el("h3", { id, title: this.name }, this.name), this.facts),
        el("button", { type: "button", class: "icon", "aria-label": `Remove ${this.name}`, onclick: () => onRemove(this) }, cross())),
      this.body);
    this.wait("waiting");
  }

  #setShape(width, height) {
    this.frame.style.setProperty("--ratio", width / height);
  }

  #cannotShow() {
    this.image.remove();
    this.frame.classList.add("unseen");
    this.preview = el("p", {}, NO_PREVIEW[this.state === "failed" ? "failed" : "other"]);
    this.frame.prepend(this.preview);
  }

  #become(state) {
    this.state = state;
    this.element.dataset.state = state;
    this.element.setAttribute("aria-busy", String(state === "waiting" || state === "asking"));
  }

  wait(text) {
    this.#become("waiting");
    if (this.answer) this.element.classList.add("stale"); // the old answer stays until there is a new one
    else this.body.replaceChildren(el("p", { class: "doing" }, text));
  }

  begin() {
    this.wait("asking");
    this.#become("asking");
  }

  /** `isFinal`: asking again would get the same. */
  fail({ title, detail, requestId, isFinal }) {
    this.#settle("failed");
    this.preview?.replaceChildren(NO_PREVIEW.failed);
    this.answer = null;
    this.canvas.hidden = true;
    this.body.replaceChildren(
      el("div", { class: "failure" },
        el("p", {}, el("strong", {}, title)),
        detail ? el("p", {}, detail) : null,
        requestId ? el("p", { class: "request-id" }, "Request ", el("code", {}, requestId)) : null,
        isFinal ? null : el("button", { type: "button", class: "quiet", onclick: () => this.onRetry(this) }, "Try again")));
  }

  /** `question`: the task and the parameters that `answer` is for. */
  show(answer, question) {
    this.#settle("answered");
    const before = this.found?.[this.chosen]?.label;
    Object.assign(this, { answer, found: answer.result.predictions ?? answer.result.tags });
    this.chosen = Math.max(0, this.found.findIndex(({ label }) => label === before));
    const { width, height } = answer.result;
    this.facts.textContent = `${width} × ${height} · ${bytes(this.file.size)} · ${answer.model.name}`;
    if (!this.image.isConnected) this.#setShape(width, height);
    this.body.replaceChildren(this.#labels(), times(answer.times), code(this.name, question));
    this.#drawMap();
  }

  #settle(state) {
    this.#become(state);
    this.breaks = 0;
    this.element.classList.remove("stale");
  }

  #labels() {
    if (!this.found.length) return el("p", { class: "nothing" }, "No label reaches its threshold.");
    const mapped = this.found.some((entry) => entry.heat_map);
    this.rows = this.found.map((entry, index) => (mapped ? this.#choosable(entry, index) : el("div", { class: "row" }, ...bar(entry))));
    const list = el("ol", { class: "bars" }, ...this.rows.map((row) => el("li", {}, row)));
    const notes = [];
    if (this.found.some((entry) => entry.threshold !== undefined)) notes.push(el("p", { class: "note" }, el("span", { class: "tick-key", "aria-hidden": "true" }), "where a tag’s threshold is"));
    if (mapped) {
      this.legend = el("p", { class: "note legend" }, el("span", { class: "legend-scale", "aria-hidden": "true", "--scale": legendGradient() }), el("span", {}));
      notes.push(this.legend);
    }
    return el("div", {}, list, ...notes);
  }

  #choosable(entry, index) {
    return el("button", { type: "button", class: "row", disabled: !entry.heat_map, "aria-pressed": "false",
      title: entry.heat_map ? `Where it looked for ${entry.label}` : "No map for this label",
      onclick: () => { this.chosen = index; this.#drawMap(); } }, ...bar(entry));
  }

  #drawMap() {
    const entry = this.found[this.chosen];
    const box = this.answer.result.heat_map_box;
    this.canvas.hidden = !(entry?.heat_map && box);
    this.frame.classList.toggle("mapped", !this.canvas.hidden);
    if (this.canvas.hidden) return;
    drawHeatMap(this.canvas, entry.heat_map, box, this.answer.result.width, this.answer.result.height);
    this.rows.forEach((row, index) => row.setAttribute("aria-pressed", String(index === this.chosen)));
    const nothing = Math.max(...entry.heat_map.flat()) <= 0; // then the picture is left as it is
    this.legend.lastChild.textContent = `${nothing ? "nothing here" : "what"} spoke for “${entry.label}”`;
  }

  /** The answer as `tresnet classify --json` writes one; undefined while there is none. */
  record(place) {
    return this.answer && { path: this.name, ...this.answer.result, id: String(place), model: this.answer.model };
  }

  /** For those who listen: the best label, or what went wrong. */
  summary() {
    if (this.state === "failed") return `${this.name}: ${this.body.querySelector("strong").textContent}`;
    const [best] = this.found;
    return `${this.name}: ${best ? `${best.label}, ${percent(best.score)}` : "no label"}`;
  }

  remove() {
    this.abort?.abort();
    URL.revokeObjectURL(this.url);
    this.element.remove();
  }
}

function bar({ label, score, threshold }) {
  const tick = threshold === undefined ? null : el("span", { class: "tick", "--at": threshold });
  return [
    el("span", { class: "label" }, label),
    el("span", { class: "score" }, percent(score)),
    el("span", { class: "track", "aria-hidden": "true" }, el("span", { class: "fill", "--at": score }), tick),
    threshold === undefined ? null : el("span", { class: "sr-only" }, ` (threshold ${percent(threshold)})`),
  ];
}

function times({ stages, totalMs }) {
  const shown = stages.filter(([name]) => STAGE_NAMES[name]);
  return el("div", { class: "times" },
    el("p", { class: "times-total" }, "Answered in ", el("strong", {}, ms(totalMs))),
    el("div", { class: "stack", "aria-hidden": "true" }, ...shown.map(([name, value]) => el("span", { "data-stage": name, "--ms": value }))),
    el("ul", { class: "times-list" }, ...shown.map(([name, value]) =>
      el("li", {}, el("span", { class: "swatch", "data-stage": name, "aria-hidden": "true" }), `${STAGE_NAMES[name]} `, el("span", { class: "number" }, ms(value))))));
}

function ms(value) {
  return `${value < 9.95 ? value.toFixed(1) : Math.round(value)} ms`;
}

function code(name, { task, parameters }) {
  const snippet = (title, text) => {
    const pre = el("pre", { tabIndex: 0, role: "group", "aria-label": `${title}: the same question` }, el("code", {}, text));
    const button = el("button", { type: "button", class: "quiet" }, `Copy ${title}`);
    button.addEventListener("click", () => copy(text, pre, button));
    return el("div", { class: "snippet" }, el("div", { class: "snippet-head" }, el("span", {}, title), button), pre);
  };
  return el("details", { class: "code" }, el("summary", {}, "The same question as code"),
    snippet("curl", snippets.curl(name, task, parameters)), snippet("Python", snippets.python(name, task, parameters)));
}

async function copy(text, pre, button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text); // there on https and localhost alone
  } catch {
    getSelection().selectAllChildren(pre);
    done = document.execCommand("copy");
  }
  const before = button.textContent;
  button.textContent = done ? "Copied" : "Selected: press Ctrl+C";
  document.getElementById("announce").textContent = button.textContent;
  setTimeout(() => { button.textContent = before; }, 2000);
}
