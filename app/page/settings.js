/** The form: which model, how many labels, from which score on. What leaves is a task and its parameters. */

import { el, percent } from "./dom.js";
import * as service from "./service.js";
import { render } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const TASKS = { classify: "one label", tag: "tags" };
const TYPING_MS = 350;

export class Settings {
  constructor(onChange) {
    this.onChange = onChange;
    this.models = [];
    this.withoutMaps = new Set(); // models that answered that they have none
    $("settings").addEventListener("submit", (event) => event.preventDefault());
    $("settings").addEventListener("input", (event) => this.#input(event.target));
  }

  get model() {
    return this.models[$("model").selectedIndex];
  }

  /** The model itself, the same one's other version, or, where it is no longer served, the chosen one. */
  served(model) {
    return this.models[this.#find(model)] ?? this.model;
  }

  /** What to ask of a model now. */
  question(model) {
    const parameters = { model: model.name };
    if (this.models.filter(({ name }) => name === model.name).length > 1) parameters.version = model.version;
    if (model.task === "classify") {
      if ($("top_k").validity.valid && $("top_k").value) parameters.top_k = Number($("top_k").value);
      if (Number($("min_score").value) > 0) parameters.min_score = Number($("min_score").value);
    } else {
      if (!$("own-thresholds").checked) parameters.threshold = Number($("threshold").value);
      if ($("max_tags").validity.valid && $("max_tags").value) parameters.max_tags = Number($("max_tags").value);
    }
    if ($("explain").checked && !this.#whyNoMaps(model)) parameters.explain = true;
    return { task: model.task, parameters };
  }

  setModels(models) {
    const before = this.model ?? addressed();
    this.models = models;
    const names = models.map(({ name }) => name);
    const title = ({ name, version, task }) => `${name}${names.indexOf(name) < names.lastIndexOf(name) ? ` version ${version}` : ""} (${TASKS[task]})`;
    $("model").replaceChildren(...models.map((model) => el("option", {}, title(model))));
    const found = this.#find(before);
    $("model").selectedIndex = Math.max(0, found < 0 ? models.findIndex((model) => model.is_default) : found);
    $("settings").hidden = models.length === 0;
    this.#showModel();
  }

  /** Choose a model that fits a sample, if there is one and the chosen one does not. */
  prefer(task, label) {
    const fits = (model) => model?.task === task && model.labels.includes(label);
    const fitting = this.models.findIndex(fits);
    if (fits(this.model) || fitting < 0) return;
    $("model").selectedIndex = fitting;
    this.#showModel();
    keepInAddress(this.model);
  }

  #find(model) {
    const same = this.models.findIndex(({ name, version }) => name === model?.name && version === model?.version);
    return same < 0 ? this.models.findIndex(({ name }) => name === model?.name) : same;
  }

  hasNoMaps(name) {
    this.withoutMaps.add(name);
    this.#showTask();
  }

  #input(target) {
    const isModel = target.id === "model";
    if (isModel) {
      this.#showModel();
      keepInAddress(this.model);
    }
    this.#showTask();
    clearTimeout(this.typing);
    this.typing = setTimeout(this.onChange, ["number", "range"].includes(target.type) ? TYPING_MS : 0, isModel);
  }

  #showModel() {
    if (this.model) $("top_k").max = this.model.labels.length;
    $("knows").textContent = this.model ? knowledge(this.model) : "";
    this.#showTask();
    this.#showCard(this.model);
  }

  #showTask() {
    const task = this.model?.task;
    for (const field of document.querySelectorAll("#settings [data-task]")) field.hidden = field.dataset.task !== task;
    $("threshold-row").hidden = $("own-thresholds").checked;
    for (const id of ["min_score", "threshold"]) $(`${id}-out`).value = percent(Number($(id).value));
    const whyNot = this.model ? this.#whyNoMaps(this.model) : "";
    $("explain").disabled = whyNot !== "";
    $("no-maps").textContent = whyNot;
  }

  /** In a sentence; empty where it can tell. A map of one cell covers everything and tells nothing. */
  #whyNoMaps({ name, heat_maps: maps }) {
    if (!maps || this.withoutMaps.has(name)) return "This model cannot show where it looked.";
    return maps.height * maps.width > 1 ? "" : "This model sees the picture as one piece, so it cannot say where it looked.";
  }

  async #showCard(model) {
    const wanted = model && `${model.name} ${model.version}`;
    if (wanted === this.cardOf) return;
    this.cardOf = wanted;
    $("model-card").hidden = true;
    const markdown = model ? await service.modelCard(model) : null;
    if (wanted !== this.cardOf || !markdown) return;
    $("model-card-name").textContent = model.name;
    $("model-card-text").replaceChildren(...render(markdown));
    $("model-card").hidden = false;
  }
}

/** What a visitor should know before they ask about something else. */
function knowledge({ task, labels }) {
  const few = labels.length <= 5 ? labels.join(", ") : `${labels[0]} … ${labels.at(-1)}`;
  const knows = `Knows ${labels.length} label${labels.length === 1 ? "" : "s"}: ${few}.`;
  return task === "classify" ? `${knows} It takes every picture for one of them.` : knows;
}

/** The model that a reload, or whoever the address was sent to, finds chosen. */
function addressed() {
  const given = new URLSearchParams(location.search);
  return given.has("model") ? { name: given.get("model"), version: given.get("version") } : undefined;
}

function keepInAddress({ name, version }) {
  const url = new URL(location.href);
  url.searchParams.set("model", name);
  url.searchParams.set("version", version);
  history.replaceState(null, "", url);
}
