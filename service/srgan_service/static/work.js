// How a result is obtained: at once where that is quick, else as a job. Knows nothing of the page.

import * as api from "./api.js";

const QUICK_PX = 250_000; // below it a request is answered before a job would have begun
const TOO_LONG = ["takes-too-long", "deadline"];
const nothing = () => {};

let offer = { jobs: false, limits: null };

/** Work with what the service offers. */
export const use = (offered) => (offer = offered);

let pxPerS = null; // as measured: how long a request may take is guessed from it

/** How long a picture may take from beginning to end, in seconds; null if nobody knows yet. */
export const expectedS = ({ width, height }) => (pxPerS && width ? (width * height) / pxPerS : null);

/** Settings as they are sent: what a browser could not show would be no use here, unless it is asked for. */
export function sent(picture, settings) {
  return settings.format === "auto" && picture.shown !== picture.file ? { ...settings, format: "png" } : settings;
}

const pxOf = ({ width, height, file }) => (width ? width * height : file.size);
const isQuick = (picture) => !(offer.jobs && pxOf(picture) > QUICK_PX);

/** Return the result of a version. `left(job)` is called when it has been left as a job, whose id is then version.job. */
export async function made(version, tell, left) {
  const { picture, settings, aborting: { signal } } = version;
  if (offer.limits?.bytes && picture.file.size > offer.limits.bytes) throw api.tooLarge(offer.limits.bytes);
  await picture.file.slice(0, 1).arrayBuffer().catch(() => {
    throw new api.Refusal(0, "unreadable", "This file cannot be read any more; choose it again.");
  });
  const wanted = sent(picture, settings);
  if (!version.job && isQuick(picture)) {
    try {
      const result = await api.upscale(picture.file, wanted, tell, signal);
      const seconds = (performance.now() - version.since) / 1000;
      if (version.stage === "working" && seconds > 0) pxPerS = pxOf(picture) / seconds;
      return result;
    } catch (error) {
      if (!offer.jobs || !TOO_LONG.includes(error.code)) throw error;
    }
  }
  version.job ??= await api.leave(version.id, picture.file, wanted, tell, signal);
  left();
  return api.follow(version.job, tell, signal);
}

/** Return a result that is no version of its own, for as long as it takes; `waiting(message)` is told of each delay. */
export async function madeBeside(picture, wanted, waiting) {
  let job = null;
  for (;;) {
    try {
      if (!job && isQuick(picture)) {
        try {
          return await api.upscale(picture.file, wanted, nothing);
        } catch (error) {
          if (!offer.jobs || !TOO_LONG.includes(error.code)) throw error;
        }
      }
      const id = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
      job ??= await api.leave(id, picture.file, wanted, nothing);
      const result = await api.follow(job, nothing);
      api.drop(job);
      return result;
    } catch (error) {
      if (!error.retryAfterS) throw error;
      waiting(error.message);
      await new Promise((resolve) => setTimeout(resolve, 1000 * error.retryAfterS));
    }
  }
}
