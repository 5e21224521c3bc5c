// Stands in for api.js on the page without a server: pictures are made larger in this browser, by local_worker.js.

import * as service from "./api.js"; // the service's own: `srgan page` binds it so for this file alone

export const { Refusal, sized, tooLarge } = service;

// What a person asks for in the address: ?backend=wasm where a graphics processor fails.
const ASKED = new URLSearchParams(location.search).get("backend");
const BROKEN = "What computes here has failed; maybe memory ran out.";

let worker = null;

/** Ask the worker, which does one thing after the other. To stop it is to end it: what it has loaded is loaded again. */
function ask(task, onFraction, signal) {
  worker ??= new Worker(new URL("local_worker.js", import.meta.url), { type: "module" });
  const running = worker, { port1, port2 } = new MessageChannel();
  const settled = new AbortController(), { signal: once } = settled; // from then on the worker may be at something else
  return new Promise((resolve, reject) => {
    const stop = (error) => {
      running.terminate();
      if (worker === running) worker = null;
      reject(error);
    };
    running.addEventListener("error", () => stop(new Refusal(0, "page", BROKEN)), { signal: once });
    signal?.addEventListener("abort", () => stop(new DOMException("cancelled", "AbortError")), { signal: once });
    port1.onmessage = ({ data: { result, error, code, isBroken, fraction } }) => {
      if (error) (isBroken ? stop : reject)(new Refusal(0, code, error));
      else if (result) resolve(result);
      else onFraction?.(fraction);
    };
    running.postMessage({ ...task, asked: ASKED, port: port2 }, [port2]);
  }).finally(() => {
    settled.abort();
    port1.close();
  });
}

let turn = Promise.resolve();

/** Do `work` when all before it is done or has failed. */
function inTurn(work) {
  const mine = turn.then(work);
  turn = mine.catch(() => {});
  return mine;
}

let beside = null; // the models that lie beside this page, and which pictures take which

/** What there is, and where it is computed. */
export async function offered() {
  const answer = await fetch("models/models.json").catch(() => null);
  if (!answer?.ok) throw new Refusal(0, "page", "The models are not beside this page; write it again with `srgan page`.");
  beside = await answer.json();
  const { name, about, megapixels } = await inTurn(() => ask({}));
  document.getElementById("backend").textContent = `Computes here by ${name}${about && ` (${about})`}`;
  const models = beside.models.map((model) => ({ ...model, precision: `fp32 by ${name}` }));
  const missing = { balance: null, jobs: false, maps: false, regions: false, metadata: false };
  return { models, ...missing, auto: true, limits: { bytes: null, megapixels } };
}

/** Return {blob, warnings, model} of a picture. `tell("working", fraction)`; a fraction of null is unknown. */
export function upscale(file, settings, tell, signal) {
  return inTurn(() => {
    if (signal?.aborted) throw new DOMException("cancelled", "AbortError");
    tell("working", null);
    return ask({ file, beside, settings: { ...settings } }, (fraction) => tell("working", fraction), signal);
  });
}

// What there is no use for without a service: nobody waits for it, there are no keys and no jobs.
const nothing = async () => {};
export const watch = () => {}, knock = nothing, useKey = nothing, leave = nothing, follow = nothing, drop = nothing;
