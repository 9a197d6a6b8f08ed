// Super-resolution: a coarse image to a finer one, compared by a divider.

import { getBlob, send } from "./api.js";
import { baseName, isNifti } from "./names.js";
import { Panel, fillNotes, megabytes } from "./panel.js";

export function openSuperResolution(root, models) {
  const panel = new Panel(root, { onFiles: takeFile, onExample: takeExample, onStart: start });
  const form = panel.find("form");
  const [before, after] = [panel.find("canvas.before"), panel.find("canvas.after")];
  const wipe = panel.find(".wipe"), compare = panel.find(".compare");
  let file = null, pair = null;

  wipe.oninput = () => compare.style.setProperty("--wipe", `${wipe.value}%`);
  for (const radio of panel.findAll("input[name=before]")) {
    radio.onchange = () => before.classList.toggle("pixels", radio.value === "pixels" && radio.checked);
  }
  const blends = panel.findAll(".blend");
  for (const blend of blends) blend.oninput = () => blends.forEach((other) => (other.value = blend.value));
  blends[1].onchange = () => panel.attempt(again);
  panel.find(".slice").oninput = () => draw();
  panel.onRestart = () => {
    file = pair = null;
  };

  async function takeExample() {
    await takeFile([{ path: "example.png", file: new File([await getBlob("web/example.png")], "example.png") }]);
  }

  async function takeFile(chosen) {
    const found = chosen.find(({ path }) => /\.png$/i.test(path) || isNifti(path));
    if (!found) throw new Error("The file is no image; expected a .png, .nii or .nii.gz.");
    ({ file } = found);
    panel.find(".case-title").textContent = `${file.name}, ${megabytes(file.size)}`;
    const both = (models["super-resolution"]?.generators ?? []).length > 1;
    for (const field of panel.findAll(".blend-field")) field.hidden = !both;
    panel.find("form .check").hidden = !isNifti(file.name);
    panel.show("ready");
    panel.find(".case-title").focus();
  }

  async function start() {
    await show(await panel.submit("v1/superresolve", makeForm(), { verb: "Super-resolving", before: "ready" }));
    panel.showResult();
  }

  /** Make the result again, with another blend, while the last one stays in view. */
  async function again() {
    const started = performance.now();
    compare.ariaBusy = "true";
    panel.find(".facts-line").textContent = "Super-resolving";
    try {
      const answer = await send("v1/superresolve", makeForm());
      await show({ ...answer, seconds: (performance.now() - started) / 1000 });
    } finally {
      compare.ariaBusy = "false";
    }
  }

  function makeForm() {
    const body = new FormData();
    body.append("image", file, file.name);
    if (!form.querySelector(".blend-field").hidden) body.append("blend", form.blend.value);
    if (form.force.checked && isNifti(file.name)) body.append("force", "true");
    return body;
  }

  async function show(answer) {
    const suffix = isNifti(file.name) ? ".nii.gz" : ".png";
    pair = isNifti(file.name) ? await readVolumes(file, answer.blob) : await readPictures(file, answer.blob);
    panel.offer([["Result", `${baseName(file.name)}_superres${suffix}`, answer.blob]]);
    const warning = answer.header("X-Glioray-Warning");
    fillNotes(panel.find(".result .notes"), warning ? [warning] : []);
    panel.find("h1").textContent = baseName(file.name);
    panel.find(".slice-field").hidden = pair.depth < 2;
    draw();
    const model = answer.header("X-Glioray-Model");
    panel.find(".facts-line").textContent =
      `${before.width} × ${before.height} to ${after.width} × ${after.height} pixels, by ${model}, in ${answer.seconds.toFixed(1)} s.`;
  }

  function draw() {
    const at = Number(panel.find(".slice").value);
    pair.draw(before, 0, at);
    pair.draw(after, 1, at);
    compare.style.setProperty("--ratio", pair.ratio);
  }
}

async function readPictures(...blobs) {
  const pictures = await Promise.all(blobs.map((blob) => createImageBitmap(blob)));
  return {
    depth: 1,
    ratio: pictures[1].width / pictures[1].height,
    draw(canvas, index) {
      [canvas.width, canvas.height] = [pictures[index].width, pictures[index].height];
      canvas.getContext("2d").drawImage(pictures[index], 0, 0);
    },
  };
}

async function readVolumes(...blobs) {
  const { Viewer } = await import("./viewer.js");
  const volumes = await Promise.all(blobs.map((blob) => Viewer.read(blob, "volume.nii.gz", { percentileFrac: 0.005 })));
  const [x, y] = volumes[1].dimsRAS.slice(1, 4).map((count, axis) => count * volumes[1].pixDimsRAS[axis + 1]);
  const top = Math.max(...volumes.map((volume) => volume.cal_max));
  const data = volumes.map((volume) => volume.img2RAS());
  return {
    depth: volumes[0].dimsRAS[3],
    ratio: x / y,
    draw(canvas, index, at) {
      const [columns, rows, depth] = volumes[index].dimsRAS.slice(1, 4);
      const { scl_slope: slope, scl_inter: shift } = volumes[index].hdr;
      const start = Math.min(depth - 1, Math.floor(at * depth)) * columns * rows;
      [canvas.width, canvas.height] = [columns, rows];
      const picture = new ImageData(columns, rows);
      for (let i = 0; i < columns * rows; i++) {
        // From the front to the back and with the patient's right on the left, as radiologists look.
        const source = start + (rows - 1 - Math.floor(i / columns)) * columns + (columns - 1 - (i % columns));
        const grey = ((data[index][source] * (slope || 1) + (shift || 0)) * 255) / top;
        picture.data.set([grey, grey, grey, 255], 4 * i);
      }
      canvas.getContext("2d").putImageData(picture, 0, 0);
    },
  };
}
