// Speaks with the service: a picture there, a larger one back. Knows nothing of the page, and the page of no HTTP.
//
// What another module has to export that is to stand in for this one:
//
//     offered()                                what there is, see below; asked once, and again after a Refusal
//     upscale(file, settings, tell, signal)    the result. `settings` are the parameters of a request to the service
//     sized(bytes), Refusal                    as they are here
//     watch(told), knock(), useKey(key)        of a service that may be away, or want a key
//     leave, follow, drop                      only if `offered` says `jobs`

const KEY = "srgan-api-key";
// Refusals that pass by themselves.
const PASSING = new Set([
  "queue-full", "key-over-share", "draining", "not-ready", "storage-failed", "too-many-connections", "unreachable",
]);

// Those that the same request would meet again: of the file, or of what is asked for.
const LASTING = new Set([
  "no-picture", "too-many-bytes", "too-many-pixels", "chunks-too-small", "takes-too-long", "unsupported-format",
  "damaged-picture", "invalid-parameter", "unreadable",
]);

/** What the service said instead of a picture. `retryAfterS` is set where waiting helps, `lasting` where nothing does. */
export class Refusal extends Error {
  constructor(status, code, message, retryAfterS = null) {
    super(message);
    Object.assign(this, { status, code, retryAfterS, lasting: LASTING.has(code) });
  }
}

/** The Refusal of a file above the limit. */
export const tooLarge = (limit) => new Refusal(413, "too-many-bytes", `This file is too large: the service takes up to ${sized(limit)}.`);

let reached = () => {};

/** Have `told(true)` called whenever the service answers, `told(false)` whenever it cannot be reached. */
export const watch = (told) => (reached = told);

/** Ask whether the service is there; whoever watches is told. */
export const knock = () => send("GET", "healthz").catch(() => {});

export const useKey = (key) => sessionStorage.setItem(KEY, key);

/** Send a request and return its XMLHttpRequest when it is answered well. fetch() cannot tell of uploads. */
function send(method, path, { body, headers = {}, type = "json", onUpload, signal } = {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, path);
    request.responseType = type;
    const key = sessionStorage.getItem(KEY);
    if (key) headers["X-API-Key"] = key;
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    if (onUpload) request.upload.onprogress = (event) => onUpload(event.loaded / event.total);
    request.onloadend = () => request.status && reached(true);
    request.onload = () => (request.status < 300 ? resolve(request) : refusal(request).then(reject));
    request.onerror = () => {
      reached(false);
      reject(new Refusal(0, "unreachable", "The service cannot be reached.", 5));
    };
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    if (signal?.aborted) request.abort();
    signal?.addEventListener("abort", () => request.abort());
    request.send(body);
  });
}

async function refusal(request) {
  let problem = request.response;
  try {
    if (problem instanceof Blob) problem = JSON.parse(await problem.text());
  } catch {
    problem = null; // a proxy's own page
  }
  const { code = "", title = `The service answered ${request.status}`, detail = "" } = problem ?? {};
  const wait = PASSING.has(code) ? Number(request.getResponseHeader("Retry-After")) || 5 : null;
  const limit = code === "too-many-bytes" && Number(/\d+/.exec(detail));
  return limit ? tooLarge(limit) : new Refusal(request.status, code, worded(title, detail), wait);
}

/** What a problem says, in sentences. */
function worded(title, detail) {
  return [title, detail.charAt(0).toUpperCase() + detail.slice(1)].filter(Boolean).join(". ").replace(/\.?$/, ".");
}

/** A number of bytes for people. */
export function sized(bytes) {
  const units = ["bytes", "kB", "MB", "GB"];
  let unit = 0;
  for (; bytes >= 1000 && unit < 3; unit++) bytes /= 1000;
  return `${bytes.toLocaleString("en", { maximumSignificantDigits: bytes < 10 ? 2 : 3 })} ${units[unit]}`;
}

/**
 * What there is: `models` as {name, description, scale, default}; `balance`, the two that a balance lies between, or null;
 * what is possible beside a picture and its settings: `jobs` (leave, follow, drop), `auto` (a model is chosen where none is
 * named), `maps`, `regions`, `metadata` (of settings); `limits` of a file's bytes and a result's megapixels, null for none.
 */
export async function offered() {
  const [{ models, balance }, { upload, jobs }] = await Promise.all(
    ["v1/models", "v1/limits"].map(async (path) => (await send("GET", path)).response));
  const limits = { bytes: upload.bytes, megapixels: upload.output_megapixels };
  return { models, balance, jobs: jobs !== null, auto: true, maps: true, regions: true, metadata: true, limits };
}

const query = (settings) => new URLSearchParams(settings);
const raw = { "Content-Type": "application/octet-stream" };

/** The strings of a list after RFC 9651. */
const strings = (header) => [...(header ?? "").matchAll(/"((?:[^"\\]|\\.)*)"/g)].map(([, text]) => text.replace(/\\(.)/g, "$1"));

/**
 * Return {blob, warnings, model, invented} of a picture: the result, and in what it differs; the name of the model that made
 * it; of a map, the grey levels that are invented. `tell(stage, fraction)`; a fraction of null is unknown.
 */
export async function upscale(file, settings, tell, signal) {
  const onUpload = (fraction) => (fraction < 1 ? tell("sending", fraction) : tell("working", null));
  const options = { body: file, headers: { ...raw }, type: "blob", onUpload, signal };
  const answer = await send("POST", `v1/upscale?${query(settings)}`, options);
  const header = (name) => answer.getResponseHeader(name);
  const invented = header("X-Invented-Levels");
  return { blob: answer.response, warnings: strings(header("X-Warnings")), model: decodeURIComponent(header("X-Model") ?? ""),
    invented: invented === null ? null : Number(invented) };
}

/** Leave a picture as a job and return its id. The same `id` again is the same job, however often it is sent. */
export async function leave(id, file, settings, tell, signal) {
  const headers = { ...raw, "Idempotency-Key": id };
  const onUpload = (fraction) => tell("sending", fraction);
  return (await send("POST", `v1/jobs?${query(settings)}`, { body: file, headers, onUpload, signal })).response.id;
}

let following = 0;

/** Wait for a job of one picture and return {blob, warnings, model: ""}: jobs do not tell which model it was. */
export async function follow(job, tell, signal) {
  following++;
  try {
    let warnings = [];
    for (;;) {
      const { status, progress, error, files } = (await send("GET", `v1/jobs/${job}`, { signal })).response;
      warnings = files[0].warnings ?? [];
      if (status === "completed") break;
      if (status === "failed") throw new Refusal(0, error?.code, worded("", error?.detail ?? "The job failed"));
      if (status === "cancelled") throw new Refusal(0, "cancelled", "The job was cancelled.");
      tell(status === "pending" ? "queued" : "working", status === "pending" ? null : progress);
      await new Promise((resolve) => setTimeout(resolve, 600 * Math.max(1, following / 4)));
    }
    return { blob: (await send("GET", `v1/jobs/${job}/result`, { type: "blob", signal })).response, warnings, model: "" };
  } finally {
    following--;
  }
}

/** Cancel a job, or remove what is left of it. */
export const drop = (job) => send("DELETE", `v1/jobs/${job}`).catch(() => {});
