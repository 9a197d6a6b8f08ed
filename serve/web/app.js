// The page: which task is shown, how the server stands, and its models.

import { Refusal, capitalise, getJson, keepKey, onKeyNeeded } from "./api.js";
import { make } from "./panel.js";
import { openSegmentation } from "./segment.js";
import { openSuperResolution } from "./superres.js";

const BUSY_MS = 3_000, CALM_MS = 60_000;
const TASKS = { segmentation: "Segmentation", "super-resolution": "Super-resolution" };

/** Models by task, kept up to date. */
const models = {};
const state = document.getElementById("state");
const stateText = document.getElementById("state-text");

openSegmentation(document.getElementById("segment"), models);
openSuperResolution(document.getElementById("superresolve"), models);

function showTask() {
  const name = location.hash === "#superresolve" ? "superresolve" : "segment";
  for (const section of document.querySelectorAll(".task")) section.hidden = section.id !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}
window.addEventListener("hashchange", () => {
  showTask();
  scrollTo(0, 0);
});
showTask();

// Its address would name no task.
document.querySelector(".skip").onclick = (event) => {
  event.preventDefault();
  document.getElementById("main").focus();
};

// A file that is dropped beside the drop area must not replace the page.
for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());

const dialog = document.getElementById("key");
let asking = null;
dialog.querySelector("button[type=button]").onclick = () => dialog.close("");

function askForKey() {
  asking ??= new Promise((resolve) => {
    const input = dialog.querySelector("input");
    input.value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      asking = null;
      const given = dialog.returnValue === "use" && input.value.trim() !== "";
      if (given) keepKey(input.value.trim());
      resolve(given);
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}
onKeyNeeded(askForKey);

function setState(kind, text, ...more) {
  if (state.dataset.kind === kind && stateText.textContent === text) return;
  state.dataset.kind = kind;
  stateText.replaceChildren(text, ...more);
}

async function look() {
  try {
    const { state: readiness, detail, superres } = await getJson("readyz");
    document.querySelector("nav a[href='#superresolve']").hidden = superres === undefined;
    await readModels(detail);
    state.title = detail;
    if (readiness === "ready") setState("ready", "Ready");
    else setState("wait", readiness === "loading" ? "Loading the model" : "Waiting for a model");
    return readiness === "ready" ? CALM_MS : BUSY_MS;
  } catch (error) {
    if (error instanceof Refusal && error.status === 401) {
      if (await askForKey()) return 0;
      const button = make("button", { type: "button", className: "link", onclick: async () => (await askForKey()) && schedule(0) }, "enter it");
      setState("wait", "Needs an API key: ", button);
      return CALM_MS;
    }
    setState("off", "Server not reached");
    return BUSY_MS;
  }
}

async function readModels(detail) {
  const { models: served = [] } = await getJson("v1/models");
  for (const task of Object.keys(models)) delete models[task];
  for (const model of served) models[model.task] = model;
  const cards = served.map((model) => make("dl", { className: "model" }, ...Object.entries({
    task: TASKS[model.task] ?? model.task,
    version: model.version,
    recipe: model.recipe,
    takes: (model.modalities ?? []).join(", "),
    "voxels, mm": (model.spacing_mm ?? []).map((mm) => mm.toFixed(2).replace(/\.?0+$/, "")).join(" × "),
  }).map(([term, value]) => make("div", {}, make("dt", {}, term), make("dd", {}, value)))));
  document.getElementById("models").replaceChildren(...(cards.length ? cards : [make("p", {}, `${capitalise(detail)}.`)]));
}

let timer = 0;

function schedule(ms) {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    const next = document.hidden ? CALM_MS : await look();
    schedule(next);
  }, ms);
}
document.addEventListener("visibilitychange", () => document.hidden || schedule(0));
schedule(0);
