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

  /** What to ask now, or null while no model is known. */
  question() {
    const model = this.model;
    if (!model) return null;
    const parameters = { model: model.name };
    if (this.models.filter(({ name }) => name === model.name).length > 1) parameters.version = model.version;
    if (model.task === "classify") {
      if ($("top_k").validity.valid && $("top_k").value) parameters.top_k = Number($("top_k").value);
      if (Number($("min_score").value) > 0) parameters.min_score = Number($("min_score").value);
    } else {
      if (!$("own-thresholds").checked) parameters.threshold = Number($("threshold").value);
      if ($("max_tags").validity.valid && $("max_tags").value) parameters.max_tags = Number($("max_tags").value);
    }
    if ($("explain").checked && !this.withoutMaps.has(model.name)) parameters.explain = true;
    return { task: model.task, parameters };
  }

  setModels(models) {
    const before = this.model;
    this.models = models;
    const names = models.map(({ name }) => name);
    const title = ({ name, version, task }) => `${name}${names.indexOf(name) < names.lastIndexOf(name) ? ` version ${version}` : ""} (${TASKS[task]})`;
    $("model").replaceChildren(...models.map((model) => el("option", {}, title(model))));
    const same = models.findIndex(({ name, version }) => name === before?.name && version === before?.version);
    const alike = same < 0 ? models.findIndex(({ name }) => name === before?.name) : same;
    $("model").selectedIndex = Math.max(0, alike);
    $("settings").hidden = models.length === 0;
    this.#showModel();
  }

  /** Choose a model that fits a sample, if there is one. True if another one is chosen now. */
  prefer(task, label) {
    if (this.model?.task === task && this.model.labels.includes(label)) return false;
    const fitting = this.models.findIndex((model) => model.task === task && model.labels.includes(label));
    if (fitting < 0) return false;
    $("model").selectedIndex = fitting;
    this.#showModel();
    return true;
  }

  hasNoMaps(name) {
    this.withoutMaps.add(name);
    this.#showTask();
  }

  #input(target) {
    if (target.id === "model") this.#showModel();
    this.#showTask();
    clearTimeout(this.typing);
    this.typing = setTimeout(this.onChange, ["number", "range"].includes(target.type) ? TYPING_MS : 0);
  }

  #showModel() {
    if (this.model) $("top_k").max = this.model.labels.length;
    this.#showTask();
    this.#showCard(this.model);
  }

  #showTask() {
    const { name, task } = this.model ?? {};
    for (const field of document.querySelectorAll("#settings [data-task]")) field.hidden = field.dataset.task !== task;
    $("threshold-row").hidden = $("own-thresholds").checked;
    for (const id of ["min_score", "threshold"]) $(`${id}-out`).value = percent(Number($(id).value));
    $("explain-row").hidden = this.withoutMaps.has(name);
    $("no-maps").hidden = !this.withoutMaps.has(name) || !$("explain").checked;
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
