// A case in NiiVue: one image, and one overlay of labels or of a map, such as a region's probability.

import "./niivue.umd.js";

const { DRAG_MODE, MULTIPLANAR_TYPE, NVImage, Niivue, SHOW_RENDER, SLICE_TYPE } = globalThis.niivue;

export const VIEWS = { all: SLICE_TYPE.MULTIPLANAR, axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL, render: SLICE_TYPE.RENDER };

/** The smallest value of a map that is coloured. */
export const LEAST = 0.1;

/** Colours of a map from LEAST to 1: [value from 0 to 255, red, green, blue, alpha]. */
export const HEAT = [[0, 0, 0, 4, 0], [26, 40, 11, 84, 90], [89, 101, 21, 110, 190], [153, 212, 72, 66, 235], [204, 245, 125, 21, 255], [255, 252, 255, 164, 255]];

const AXES = { ArrowLeft: [0, 1], ArrowRight: [0, -1], ArrowUp: [1, 1], ArrowDown: [1, -1], PageUp: [2, 1], PageDown: [2, -1] };

export class Viewer {
  /**
   * Show images on a canvas; throws where the browser has no WebGL 2.
   * onMove({voxel, sizes}) when the crosshair has moved.
   */
  static async open(canvas, onMove) {
    if (!document.createElement("canvas").getContext("webgl2")) throw new Error("no WebGL 2");
    const viewer = new Viewer();
    const nv = new Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.36, 0.82, 0.78, 0.7],
      crosshairWidth: 0.5,
      crosshairGap: 6,
      dragAndDropEnabled: false,
      dragMode: DRAG_MODE.contrast,
      fontColor: [0.75, 0.8, 0.82, 1],
      isRadiologicalConvention: true,
      isResizeCanvas: true,
      loadingText: "",
      logLevel: "warn",
      multiplanarLayout: MULTIPLANAR_TYPE.GRID,
      multiplanarShowRender: SHOW_RENDER.ALWAYS,
      multiplanarPadPixels: 4,
      renderOverlayBlend: 1,
    });
    nv.addColormap("heat", Object.fromEntries(["I", "R", "G", "B", "A"].map((name, i) => [name, HEAT.map((stop) => stop[i])])));
    await nv.attachToCanvas(canvas);
    // Beside the other task the canvas has no size to draw at.
    const draw = nv.drawScene.bind(nv);
    nv.drawScene = () => canvas.offsetWidth && canvas.offsetHeight && draw();
    nv.onLocationChange = () => onMove(viewer.place());
    canvas.addEventListener("keydown", (event) => viewer.#step(event), true);
    // The wheel scrolls the page until the picture has the focus.
    canvas.parentElement.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas) event.stopPropagation();
    }, { capture: true });
    return Object.assign(viewer, { nv, canvas });
  }

  /** Read an image for `show`. */
  static async read(file, name, options = {}) {
    return NVImage.loadFromFile({ file: new File([file], name), ignoreZeroVoxels: true, ...options });
  }

  /** Read a mask, with colours: {number: {name, colour}}. */
  static async readLabels(file, labels) {
    const mask = await NVImage.loadFromFile({ file: new File([file], "mask.nii.gz") });
    const entries = [[0, { name: "", colour: "#000000" }], ...Object.entries(labels)];
    const channel = (at) => entries.map(([, { colour }]) => parseInt(colour.slice(at, at + 2), 16));
    mask.setColormapLabel({
      R: channel(1), G: channel(3), B: channel(5),
      A: entries.map((_, i) => (i ? 255 : 0)),
      I: entries.map(([number]) => Number(number)),
      labels: entries.map(([, { name }]) => name),
    });
    return mask;
  }

  /** Read a map of values in [0, 1]. */
  static async readMap(file) {
    return NVImage.loadFromFile({ file: new File([file], "map.nii.gz"), colormap: "heat", cal_min: LEAST, cal_max: 1 });
  }

  /** Show an image (and one of its frames) with an overlay, where the crosshair was. */
  show(image, overlay, opacity, frame = 0) {
    const { nv } = this;
    image.frame4D = frame;
    if (overlay) overlay.opacity = opacity;
    nv.volumes = [image, overlay].filter(Boolean);
    nv.setVolume(image, 0);
  }

  set opacity(value) {
    if (this.nv.volumes.length > 1) this.nv.setOpacity(1, value);
  }

  set view(name) {
    this.nv.setSliceType(VIEWS[name]);
  }

  /** Forget the images. */
  clear() {
    for (const volume of [...this.nv.volumes]) this.nv.setVolume(volume, -1);
  }

  /** Move the crosshair to millimetres in RAS+. */
  goTo(mm) {
    this.nv.scene.crosshairPos = this.nv.mm2frac(mm);
    this.#moved();
  }

  /** Move the crosshair along one axis (0 to 2, RAS+) to a voxel. */
  setSlice(axis, voxel) {
    const place = this.place().voxel;
    place[axis] = voxel;
    this.nv.scene.crosshairPos = this.nv.vox2frac(place);
    this.#moved();
  }

  /** The voxel below the crosshair and the number of voxels, in RAS+. */
  place() {
    const { nv } = this;
    return { voxel: [...nv.frac2vox(nv.scene.crosshairPos)].slice(0, 3), sizes: nv.volumes[0].dimsRAS.slice(1, 4) };
  }

  #moved() {
    this.nv.createOnLocationChange();
    this.nv.drawScene();
  }

  #step(event) {
    if (!(event.key in AXES) || !this.nv.volumes.length) return;
    const [axis, by] = AXES[event.key];
    event.preventDefault();
    event.stopImmediatePropagation();
    const { voxel, sizes } = this.place();
    this.setSlice(axis, Math.min(Math.max(voxel[axis] + by, 0), sizes[axis] - 1));
  }
}
