// What both tasks share: states, dropped files, progress, errors and downloads.

import { Refusal, capitalise, send } from "./api.js";
import { readDrop } from "./names.js";

/** An element with attributes, properties and children. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export const megabytes = (bytes) => (bytes < 1e5 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

const clock = (ms) => {
  const seconds = Math.floor(ms / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
};

/** One task's section of the page. */
export class Panel {
  constructor(root, { onFiles, onExample, onStart }) {
    this.root = root;
    this.urls = [];
    this.heading = this.find("h1").textContent;
    const files = this.find("input.files"), folder = this.find("input.folder");
    for (const button of this.findAll(".choose-files")) button.onclick = () => files.click();
    for (const button of this.findAll(".choose-folder")) button.onclick = () => folder.click();
    for (const input of [files, folder].filter(Boolean)) {
      input.onchange = () => {
        const chosen = [...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
        input.value = "";
        this.attempt(() => onFiles(chosen));
      };
    }
    for (const button of this.findAll(".restart")) button.onclick = () => this.restart();
    this.find(".example").onclick = () => this.attempt(() => this.prepareExample(onExample));
    this.find("form").onsubmit = (event) => {
      event.preventDefault();
      this.attempt(onStart);
    };
    this.find(".cancel").onclick = () => this.controller?.abort();
    root.addEventListener("dragover", (event) => this.drag(event, true));
    root.addEventListener("dragleave", (event) => this.drag(event, false));
    root.addEventListener("drop", (event) => {
      this.drag(event, false);
      if (!this.takesFiles) return;
      const reading = readDrop(event.dataTransfer.items);
      this.attempt(async () => onFiles(await reading));
    });
    this.show("empty");
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  findAll(selector) {
    return this.root.querySelectorAll(selector);
  }

  get takesFiles() {
    return ["empty", "ready"].includes(this.root.dataset.state);
  }

  drag(event, over) {
    event.preventDefault();
    event.dataTransfer.dropEffect = this.takesFiles ? "copy" : "none";
    this.root.classList.toggle("over", over && this.takesFiles);
  }

  /** Show the parts of a state: empty, ready, uploading, working or result. */
  show(state) {
    this.root.dataset.state = state;
    document.title = { uploading: "Uploading – glioray", working: "Working – glioray", result: "Done – glioray" }[state] ?? "glioray";
    for (const part of this.findAll("[data-in]")) part.hidden = !part.dataset.in.split(" ").includes(state);
  }

  restart() {
    this.clearAlert();
    for (const url of this.urls.splice(0)) URL.revokeObjectURL(url);
    this.onRestart?.();
    this.find("h1").textContent = this.heading;
    this.show("empty");
    this.find("h1").focus();
  }

  clearAlert() {
    this.find(".alerts").replaceChildren();
  }

  /** Do something; what goes wrong becomes a sentence for the reader. */
  async attempt(work) {
    this.clearAlert();
    try {
      await work();
    } catch (error) {
      if (error.name === "AbortError") return;
      const known = error instanceof Refusal || error.constructor === Error;
      if (!known) console.error(error);
      const sentence = known ? error.message : "The page failed on this; reload it and try again.";
      const alert = make("p", {}, make("span", {}, capitalise(sentence)));
      if (error.offer) {
        const [label, onclick] = error.offer;
        alert.append(make("button", { type: "button", className: "button small", onclick }, label));
      }
      this.find(".alerts").replaceChildren(alert);
      this.find(".alerts").scrollIntoView({ block: "nearest" });
    }
  }

  async prepareExample(onExample) {
    const buttons = this.findAll(".drop button");
    const label = this.find(".example").textContent;
    for (const button of buttons) button.disabled = true;
    this.find(".example").textContent = "Making it";
    try {
      await onExample();
    } finally {
      for (const button of buttons) button.disabled = false;
      this.find(".example").textContent = label;
    }
  }

  /** Send a form while the progress is shown; the answer, and how long it took in seconds. */
  async submit(path, form, { verb, accept, before }) {
    const started = performance.now();
    const [stage, bar, detail] = [".stage", "progress", ".detail"].map((selector) => this.find(`.progress ${selector}`));
    this.controller = new AbortController();
    let uploading = true;
    stage.textContent = "Uploading";
    bar.value = 0;
    detail.textContent = "";
    this.show("uploading");
    this.find(".cancel").focus();
    const timer = setInterval(() => {
      if (!uploading) detail.textContent = clock(performance.now() - started);
    }, 250);
    try {
      const answer = await send(path, form, {
        accept,
        signal: this.controller.signal,
        onUpload: (sent, total) => {
          bar.max = total;
          bar.value = sent;
          detail.textContent = `${megabytes(sent)} of ${megabytes(total)}`;
        },
        onWork: () => {
          uploading = false;
          bar.removeAttribute("value");
          stage.textContent = verb;
          detail.textContent = clock(performance.now() - started);
          this.show("working");
        },
      });
      return { ...answer, seconds: (performance.now() - started) / 1000 };
    } catch (error) {
      this.show(before);
      this.find(before === "ready" ? "form button[type=submit]" : "h1").focus();
      throw error;
    } finally {
      clearInterval(timer);
    }
  }

  /** Show the result, and put the reader there. */
  showResult() {
    this.show("result");
    this.find("h1").focus();
    this.root.scrollIntoView({ block: "start" });
  }

  /** List files to download: [[title, file name, blob]]. */
  offer(files) {
    this.find(".downloads").replaceChildren(...files.map(([title, name, blob]) => {
      const url = URL.createObjectURL(blob);
      this.urls.push(url);
      const link = make("a", { href: url, download: name }, make("span", {}, title), make("span", { className: "size" }, megabytes(blob.size)));
      return make("li", {}, link);
    }));
  }
}

/** Fill a group of radio buttons: [[value, title]]; the first is chosen. */
export function fillChoice(fieldset, name, options, onChange) {
  const row = fieldset.querySelector(".options-row");
  row.replaceChildren(...options.map(([value, title], index) => {
    const input = make("input", { type: "radio", name, value, checked: index === 0, onchange: () => onChange(value) });
    return make("label", {}, input, make("span", {}, title));
  }));
  fieldset.hidden = options.length < 2;
}

/** Fill a list of sentences; hidden where there are none. */
export function fillNotes(list, sentences) {
  list.replaceChildren(...sentences.map((text) => make("li", {}, capitalise(text).replace(/\.?$/, "."))));
  list.hidden = !sentences.length;
}
