// Segmentation: files of a case to a mask, its volumes and a report.

import { getBlob } from "./api.js";
import { SHORT, TITLES, assign, isNifti, isZip, recognise } from "./names.js";
import { Panel, fillChoice, fillNotes, make, megabytes } from "./panel.js";
import { readZip } from "./zip.js";

// The same colours as in every figure of the reports.
const LABELS = {
  ncr: { name: "Necrotic core", colour: "#e4572e" },
  ed: { name: "Oedema", colour: "#3fa34d" },
  et: { name: "Enhancing tumour", colour: "#f2c14e" },
  rc: { name: "Resection cavity", colour: "#5b8def" },
};
const REGIONS = { wt: "Whole tumour", tc: "Tumour core", et: "Enhancing tumour", ncr: "Necrotic core", ed: "Oedema", rc: "Resection cavity" };
const NUMBERS = {
  "brats-et4": { 1: "ncr", 2: "ed", 4: "et" },
  "brats-et3": { 1: "ncr", 2: "ed", 3: "et" },
  brats2024: { 1: "ncr", 2: "ed", 3: "et", 4: "rc" },
  msd: { 1: "ed", 2: "ncr", 3: "et" },
};
const IMAGE_FRAMES = ["flair", "t1", "t1c", "t2"];
const MAX_LESIONS = 20;

export function openSegmentation(root, models) {
  const panel = new Panel(root, { onFiles: addFiles, onExample: addExample, onStart: start });
  const form = panel.find("form");
  let files = [], slots = {}, title = "";
  let viewer = null, onMove = () => {};

  panel.onRestart = () => {
    files = [];
    form.resample.checked = false;
    viewer?.clear();
  };

  const modalities = () => models.segmentation?.modalities ?? Object.keys(SHORT);

  async function addExample() {
    await addFiles([{ path: "example.zip", file: new File([await getBlob("web/example.zip")], "example.zip") }]);
  }

  async function addFiles(chosen) {
    const added = [];
    for (const { path, file } of chosen) {
      if (isNifti(path)) added.push({ path, file });
      else if (isZip(path)) {
        for (const [name, blob] of await readZip(file)) {
          if (isNifti(name)) added.push({ path: name, file: new File([blob], name.split("/").at(-1)) });
        }
      }
    }
    const usable = added.filter(({ path }) => recognise(path).role !== "mask");
    if (!usable.length) {
      throw new Error(`${chosen.length === 1 ? "The file is" : "The files are"} not NIfTI images; expected .nii or .nii.gz, or a .zip of them.`);
    }
    const paths = new Set(usable.map(({ path }) => path));
    files = [...files.filter(({ path }) => !paths.has(path)), ...usable];
    const found = assign(files, modalities());
    ({ slots, title } = found);
    panel.find(".case-title").textContent = title || "Case";
    fillNotes(panel.find("form .notes"), found.notes);
    fillSlots();
    panel.find(".needs-superres").hidden = !models["super-resolution"];
    panel.show("ready");
    panel.find(".case-title").focus();
  }

  function fillSlots() {
    // What all names begin with is in the title.
    const names = files.map(({ path }) => path.split("/").at(-1));
    let shared = names[0].search(/[^_-]*$/);
    while (shared > 0 && !names.every((name) => name.startsWith(names[0].slice(0, shared)))) shared--;
    panel.find(".slots").replaceChildren(...Object.keys(slots).map((slot) => {
      const size = make("p", { className: "size" });
      const options = files.map(({ path }, index) => make("option", { value: index, title: path }, names.length > 1 ? names[index].slice(shared) : names[index]));
      const select = make("select", { name: slot }, make("option", { value: "" }, "no file"), ...options);
      select.value = slots[slot] ?? "";
      const describe = () => {
        slots[slot] = select.value === "" ? null : Number(select.value);
        const index = slots[slot];
        size.textContent = index === null ? "missing" : megabytes(files[index].file.size);
        label.classList.toggle("missing", index === null);
      };
      const label = make("label", { className: "slot" }, make("span", { className: "slot-name" }, TITLES[slot]), select, size);
      select.onchange = () => {
        describe();
        fillNotes(panel.find("form .notes"), []);
      };
      describe();
      return label;
    }));
  }

  async function start() {
    const missing = Object.keys(slots).filter((slot) => slots[slot] === null);
    if (missing.length) throw new Error(`No file for ${missing.map((slot) => SHORT[slot]).join(", ")}; choose one for each.`);
    const body = new FormData();
    const chosen = Object.fromEntries(Object.entries(slots).map(([slot, index]) => [slot, files[index].file]));
    for (const [slot, file] of Object.entries(chosen)) body.append(slot, file, file.name);
    body.append("output", "all");
    if (form.labels.value) body.append("labels", form.labels.value);
    if (form.superresolve.checked) for (const [name, value] of [["superresolve", "true"], ["grid", "input"]]) body.append(name, value);
    if (form.resample.checked) body.append("resample", "true");
    const answer = await panel.submit("v1/segment", body, { verb: "Segmenting", before: "ready" }).catch(offerResampling);
    const parts = await readZip(answer.blob);
    const report = JSON.parse(await parts.get("report.json").text());
    const name = title || "case";
    panel.offer([
      ["Mask", `${name}_segmentation.nii.gz`, parts.get("segmentation.nii.gz")],
      ["Report to print", `${name}_report.html`, parts.get("report.html")],
      ["Report as data", `${name}_report.json`, parts.get("report.json")],
      ["Picture", `${name}_overlay.png`, parts.get("overlay.png")],
      ["Everything, with probabilities and uncertainty", `${name}_segmentation.zip`, answer.blob],
    ]);
    fillReport(report, answer);
    panel.showResult();
    await showImages(chosen, parts, report);
  }

  /** Where the endpoint's sentence names the field that helps, the reader may send the case again with it. */
  function offerResampling(error) {
    if (error.message.includes("resample=true")) {
      error.offer = ["Resample and segment", () => {
        form.resample.checked = true;
        form.requestSubmit();
      }];
    }
    throw error;
  }

  function fillReport(report, answer) {
    panel.find("h1").textContent = title || "Result";
    const flags = [...report.flags];
    const warning = answer.header("X-Glioray-Warning");
    if (warning) flags.push(...warning.split("; ").filter((part) => !flags.some((flag) => flag.includes(part))));
    fillNotes(panel.find(".flags ul"), flags);
    panel.find(".flags").hidden = !flags.length;
    panel.find(".volumes tbody").replaceChildren(...Object.entries(report.volumes_ml).map(([region, ml]) => {
      const range = report.certainty[region]?.volume_range_ml;
      const swatch = make("span", { className: `swatch ${region}`, ariaHidden: "true" });
      swatch.style.background = { ...LABELS }[region]?.colour ?? "";
      return make("tr", {},
        make("th", { scope: "row" }, swatch, REGIONS[region] ?? region),
        make("td", {}, ml.toFixed(1)),
        make("td", {}, range ? `${range[0].toFixed(1)} – ${range[1].toFixed(1)}` : ""));
    }));
    const lesions = report.lesions.slice(0, MAX_LESIONS);
    panel.find(".lesions").hidden = !lesions.length;
    panel.find(".lesions tbody").replaceChildren(...lesions.map((lesion, index) => {
      const go = make("button", { type: "button", className: "button small", onclick: () => viewer?.goTo(lesion.centroid_mm) }, "Show");
      go.setAttribute("aria-label", `Show lesion ${index + 1} in the picture`);
      return make("tr", {},
        make("th", { scope: "row" }, REGIONS[lesion.region] ?? lesion.region),
        make("td", {}, lesion.volume_ml < 0.01 ? "< 0.01" : lesion.volume_ml.toFixed(2)),
        make("td", {}, lesion.diameter_mm.toFixed(1)),
        make("td", {}, lesion.axial_diameters_mm.map((mm) => mm.toFixed(1)).join(" × ")),
        make("td", {}, String(lesion.axial_slice + 1)),
        make("td", {}, go));
    }));
    const total = Object.values(report.num_lesions).reduce((sum, number) => sum + number, 0);
    panel.find(".more").textContent = total > lesions.length ? `${total - lesions.length} smaller ones are not listed.` : "";
    const models = [`Model ${report.model}`, report.superres && `after super-resolution by ${report.superres}`].filter(Boolean).join(", ");
    panel.find(".made-by").textContent = `${models}, in ${answer.seconds.toFixed(1)} s.`;
  }

  async function showImages(chosen, parts, report) {
    const canvas = panel.find("canvas"), still = panel.find(".still");
    const tools = [panel.find(".tools"), panel.find(".below"), panel.find(".sliders"), canvas];
    const sliders = [...panel.findAll(".sliders input")];
    const { HEAT, LEAST, Viewer } = await import("./viewer.js");
    try {
      viewer ??= await Viewer.open(canvas, (place) => onMove(place));
    } catch (error) {
      console.warn(error);
      still.src = panel.find(".downloads a[download$='.png']").href;
      still.hidden = false;
      for (const part of tools) part.hidden = true;
      throw new Error("This browser cannot draw in 3-D (WebGL 2 is off), so a still picture is shown; the downloads are complete.");
    }
    onMove = ({ voxel, sizes }) => {
      sliders.forEach((slider, axis) => {
        slider.max = sizes[axis] - 1;
        slider.value = voxel[axis];
        slider.parentElement.querySelector("output").textContent = `${Math.round(voxel[axis]) + 1} of ${sizes[axis]}`;
      });
    };
    sliders.forEach((slider, axis) => {
      slider.oninput = () => viewer.setSlice(axis, Number(slider.value));
    });

    const convention = form.labels.value || ("rc" in report.volumes_ml ? "brats2024" : "brats-et4");
    const labels = Object.fromEntries(Object.entries(NUMBERS[convention]).map(([number, label]) => [number, LABELS[label]]));
    const read = new Map();
    const once = (key, make) => read.get(key) ?? read.set(key, make()).get(key);
    const image = (slot) => once(slot, () => Viewer.read(chosen[slot], chosen[slot].name));
    const overlays = {
      labels: () => once("labels", () => Viewer.readLabels(parts.get("segmentation.nii.gz"), labels)),
      ...Object.fromEntries(Object.keys(report.certainty).map((region) => [
        region, () => once(`p-${region}`, () => Viewer.readMap(parts.get(`probability_${region}.nii.gz`))),
      ])),
      uncertainty: () => once("uncertainty", () => Viewer.readMap(parts.get("uncertainty.nii.gz"))),
      none: async () => null,
    };
    const frames = "image" in chosen ? IMAGE_FRAMES.map((name, frame) => [name, "image", frame]) : Object.keys(chosen).map((name) => [name, name, 0]);
    const order = ["flair", "t1c", "t2", "t1"].filter((name) => frames.some(([frame]) => frame === name));
    const opacity = panel.find(".opacity");
    const now = { image: order[0], overlay: "labels" };

    async function draw() {
      const [, slot, frame] = frames.find(([name]) => name === now.image);
      const [base, over] = await Promise.all([image(slot), overlays[now.overlay]()]);
      viewer.show(base, over, Number(opacity.value), frame);
      fillLegend();
    }

    function fillLegend() {
      const legend = panel.find(".legend");
      if (now.overlay === "labels") {
        const present = Object.values(NUMBERS[convention]).filter((label) => label in report.volumes_ml || !("ed" in report.volumes_ml));
        legend.replaceChildren(...present.map((label) => {
          const swatch = make("span", { className: "swatch" });
          swatch.style.background = LABELS[label].colour;
          return make("span", { className: "key" }, swatch, "ed" in report.volumes_ml ? LABELS[label].name : REGIONS.wt);
        }));
      } else if (now.overlay !== "none") {
        const bar = make("span", { className: "heat" });
        bar.style.background = `linear-gradient(90deg, ${HEAT.map(([at, r, g, b]) => `rgb(${r} ${g} ${b}) ${Math.round(at / 2.55)}%`).join(", ")})`;
        legend.replaceChildren(make("span", { className: "key" }, `${now.overlay === "uncertainty" ? "Uncertainty" : `Probability of ${REGIONS[now.overlay].toLowerCase()}`}: ${LEAST}`, bar, "1"));
      } else legend.replaceChildren();
    }

    const redraw = (key) => (value) => {
      now[key] = value;
      panel.attempt(draw);
    };
    fillChoice(panel.find(".choice.image"), "image", order.map((name) => [name, SHORT[name]]), redraw("image"));
    const regions = Object.keys(report.certainty).map((region) => [region, `P(${region.toUpperCase()})`]);
    fillChoice(panel.find(".choice.overlay"), "overlay", [["labels", "Labels"], ...regions, ["uncertainty", "Uncertainty"], ["none", "None"]], redraw("overlay"));
    opacity.oninput = () => (viewer.opacity = Number(opacity.value));
    const planes = panel.find(".planes");
    planes.onchange = () => (viewer.view = planes.value);
    viewer.view = planes.value;
    await draw();
    if (report.lesions.length) viewer.goTo(report.lesions[0].centroid_mm);
    panel.find(".screen").dataset.shown = title;
  }
}
