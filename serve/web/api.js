// Requests to the endpoint that this page came from.

const BASE = new URL("../", import.meta.url);
const KEY = "glioray-key";

/** A request that failed, with the sentence for the reader. */
export class Refusal extends Error {
  constructor(sentence, status = 0) {
    super(sentence);
    this.status = status;
  }
}

const UNREACHABLE = "The server does not answer; check that it runs and try again.";

let askForKey = async () => false;

/** Set what asks the reader for an API key; it resolves to whether one was given. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

export const keepKey = (key) => sessionStorage.setItem(KEY, key);

function authorization() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** The JSON at a path, whatever its status; throws a Refusal where there is none. */
export async function getJson(path) {
  const answer = await get(path);
  if (answer.status === 401) throw new Refusal(await sentenceOf(await answer.blob(), 401), 401);
  return answer.json();
}

/** The file at a path. */
export async function getBlob(path) {
  const answer = await get(path);
  const blob = await answer.blob();
  if (!answer.ok) throw new Refusal(await sentenceOf(blob, answer.status), answer.status);
  return blob;
}

async function get(path) {
  try {
    return await fetch(new URL(path, BASE), { headers: { Accept: "application/json, */*;q=0.5", ...authorization() } });
  } catch {
    throw new Refusal(UNREACHABLE);
  }
}

/**
 * Send a form and return {blob, header}; asks for an API key where one is needed.
 * onUpload(sent, total) while the files go up; onWork() when they have.
 */
export async function send(path, form, { accept = "*/*", onUpload = () => {}, onWork = () => {}, signal } = {}) {
  for (;;) {
    const request = new XMLHttpRequest();
    const answer = await new Promise((resolve, reject) => {
      request.open("POST", new URL(path, BASE));
      request.responseType = "blob";
      for (const [name, value] of Object.entries({ Accept: accept, ...authorization() })) {
        request.setRequestHeader(name, value);
      }
      request.upload.onprogress = (event) => onUpload(event.loaded, event.total);
      request.upload.onload = onWork;
      request.onload = () => resolve(request.response);
      // A refusal may come while the files are still on their way.
      request.onerror = () => reject(new Refusal(UNREACHABLE));
      request.onabort = () => reject(new DOMException("stopped", "AbortError"));
      signal?.addEventListener("abort", () => request.abort());
      request.send(form);
    });
    if (request.status === 401 && (await askForKey())) continue;
    if (request.status >= 400) throw new Refusal(await sentenceOf(answer, request.status), request.status);
    return { blob: answer, header: (name) => request.getResponseHeader(name) };
  }
}

async function sentenceOf(blob, status) {
  try {
    const { detail } = JSON.parse(await blob.text());
    if (typeof detail === "string") return capitalise(detail);
  } catch {
    // Not the endpoint's own answer, but that of something between.
  }
  return `The server answered with status ${status} and no reason; try again.`;
}

export const capitalise = (text) => text.charAt(0).toUpperCase() + text.slice(1);
