// Which file is which: modalities by file name, as in a bucket.

const TOKENS = {
  t1: ["t1", "t1n", "t1w"],
  t1c: ["t1c", "t1ce", "t1gd", "t1post"],
  t2: ["t2", "t2w"],
  flair: ["flair", "fla", "t2f", "t2flair"],
  mask: ["seg", "segm", "segmentation", "mask", "label", "glistrboost", "gtv"],
};
const ROLE_OF = new Map(Object.entries(TOKENS).flatMap(([role, tokens]) => tokens.map((token) => [token, role])));
// As in BIDS: sub-01_ce-gd_T1w.
const CONTRAST = /(^|[^a-z])(ce|gd|gad|gadolinium|post|contrast)([^a-z]|$)/i;
// nnU-Net numbers the files; dataset.json says what the numbers mean, and without one this is its usual order.
const NUMBERED = ["t1", "t1c", "t2", "flair"];

export const TITLES = { t1: "T1", t1c: "T1 with contrast", t2: "T2", flair: "FLAIR", image: "One 4-D file" };
export const SHORT = { t1: "T1", t1c: "T1c", t2: "T2", flair: "FLAIR" };

export const isNifti = (name) => /\.nii(\.gz)?$/i.test(name);
export const isZip = (name) => /\.zip$/i.test(name);

/** {case, role, numbered} of a file name; role is a modality, "mask" or null. */
export function recognise(path) {
  const folder = path.slice(0, path.lastIndexOf("/") + 1);
  const stem = path.slice(folder.length).replace(/\.nii(\.gz)?$/i, "");
  const numbered = /^(.*)_(\d{4})$/.exec(stem);
  const parts = stem.split(/[^A-Za-z0-9]+/);
  for (let end = parts.length; end > 0; end--) {
    for (const length of [2, 1]) {
      const token = parts.slice(Math.max(0, end - length), end).join("").toLowerCase();
      const role = ROLE_OF.get(token);
      if (!role) continue;
      const name = folder + parts.slice(0, Math.max(0, end - length)).join("_");
      return { case: name, role: role === "t1" && CONTRAST.test(stem) ? "t1c" : role, numbered: false };
    }
  }
  if (numbered && Number(numbered[2]) < NUMBERED.length) {
    return { case: folder + numbered[1], role: NUMBERED[Number(numbered[2])], numbered: true };
  }
  return { case: folder + stem, role: null, numbered: false };
}

/**
 * Assign files to the modalities of a model.
 * files: [{path, file}]. Returns {slots: {modality: index or null}, title, notes}.
 */
export function assign(files, modalities) {
  const found = files.map(({ path }) => recognise(path));
  const cases = new Map();
  found.forEach(({ case: name, role }, index) => {
    if (!cases.has(name)) cases.set(name, {});
    if (modalities.includes(role)) cases.get(name)[role] ??= index;
  });
  const notes = [];
  if (files.length === 1 && found[0].role === null && modalities.length === 4) {
    return { slots: { image: 0 }, title: baseName(files[0].path), notes };
  }
  const count = (slots) => Object.keys(slots).length;
  const sorted = [...cases].filter(([, slots]) => count(slots) > 0).sort((a, b) => count(b[1]) - count(a[1]));
  const [title, chosen] = sorted[0] ?? ["", {}];
  const rivals = sorted.filter(([, slots]) => count(slots) === count(chosen));
  if (count(chosen) > 1 && rivals.length > 1) {
    notes.push(`There are ${rivals.length} cases here; the first, ${baseName(title)}, is below.`);
  }
  for (const modality of modalities.filter((modality) => !(modality in chosen))) {
    const others = found.flatMap(({ role }, index) => (role === modality ? [index] : []));
    if (others.length !== 1) continue;
    [chosen[modality]] = others;
    if (title) notes.push(`${SHORT[modality]} has another name than the rest: check that it is of the same patient.`);
  }
  const slots = Object.fromEntries(modalities.map((modality) => [modality, chosen[modality] ?? null]));
  if (Object.values(chosen).some((index) => found[index].numbered)) {
    notes.push("The files are numbered, so their order is assumed: check it.");
  }
  const missing = modalities.filter((modality) => slots[modality] === null);
  if (missing.length) {
    notes.push(`No file was recognised as ${missing.map((m) => SHORT[m]).join(", ")}: choose it below, or add it.`);
  }
  return { slots, title: baseName(title), notes };
}

export function baseName(path) {
  const parts = path.split("/").filter(Boolean);
  return (parts.at(-1) ?? "").replace(/\.(nii(\.gz)?|png)$/i, "");
}

/** Files of a drop, folders followed: [{path, file}]. */
export async function readDrop(items) {
  // All entries are taken at once: the browser forgets the items when this function first waits.
  const reading = [...items].filter(({ kind }) => kind === "file").map((item) => {
    const entry = item.webkitGetAsEntry?.();
    if (entry) return readEntry(entry);
    const file = item.getAsFile();
    return [{ path: file.name, file }];
  });
  return (await Promise.all(reading)).flat();
}

async function readEntry(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ path: entry.fullPath.replace(/^\//, ""), file }];
  }
  const reader = entry.createReader();
  const lists = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return lists.flat();
    lists.push(...(await Promise.all(some.map(readEntry))));
  }
}
