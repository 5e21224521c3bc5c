// The page: pictures come in, versions of them are made one after the other, and what happens is said.
//
//     app -> api      requests, jobs and refusals        app -> viewer -> compare    looking at them
//     app -> store    what a reload finds again          app -> zip                  all of them in one file

import * as api from "./api.js";
import { forget, kept, one, update } from "./store.js";
import { Viewer, fileName, named, save } from "./viewer.js";
import { zip } from "./zip.js";

const AT_ONCE = 3; // pictures on their way to the service
const QUICK_PX = 250_000; // below it a request is answered before a job would have begun
const KNOCK_EVERY_S = 5; // at a service that cannot be reached
const TRIES = 3; // of an upscaler that fails, which may be a matter of that moment
const THUMB_PX = 96;

const element = (id) => document.getElementById(id);
const LOSSLESS = ["png", "tiff"];
const SHOWABLE = { scale: 1, strength: 0, format: "png" }; // the same picture, as every browser shows it
const BETWEEN = "between"; // what the choice of a model says for a balance

/** What is chosen: only what matters, so that the same choice is the same version. */
function settings() {
  const [model, scale, format, side, quality] = ["model", "scale", "format", "long_side", "quality"].map((name) => element(name).value);
  return {
    ...(model === BETWEEN ? { balance: element("balance").value / 100 } : { model }),
    ...(scale ? { scale } : { long_side: whole(side, 100_000) ?? 3000 }),
    format,
    ...(!LOSSLESS.includes(format) && whole(quality, 100) && { quality: whole(quality, 100) }),
  };
}

const whole = (text, most) => (Number(text) >= 1 ? Math.min(most, Math.round(text)) : null);
const same = (one, other) => JSON.stringify(Object.entries(one).sort()) === JSON.stringify(Object.entries(other).sort());
const newId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");

const pictures = [];
let models = [], balanced = null, jobs = false, viewer = null;
let hold = null; // {until, why}: nothing is sent before
let keyIsMissing = false, keyWasGiven = false;
let pxPerS = null; // as measured: how long a request may take is guessed from it

const MESSAGE_MS = 8000; // long enough to read; what stays true is in the list as well
let saying = null;

function say(text) {
  element("said").textContent = text;
  clearTimeout(saying);
  saying = setTimeout(() => (element("said").textContent = ""), MESSAGE_MS);
}

const isWaiting = (version) => version.stage === "waiting";
const versions = () => pictures.flatMap((picture) => picture.versions);

/** Make an element; what begins with "on" or is a property of elements is set, the rest are attributes. */
function build(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// Pictures

function add(files) {
  if (!files.length) return;
  const added = [...files].map((file) => {
    const picture = { id: newId(), at: Date.now(), name: file.name || "pasted.png", file, shown: file, versions: [] };
    return enter(picture);
  });
  for (const picture of added) makeVersion(picture, settings());
  show(viewer.picture?.width ? viewer.picture : added[0]);
  say(`${added.length} added`);
}

/** Put a picture into the list. */
function enter(picture) {
  picture.thumb = build("canvas", { width: THUMB_PX, height: THUMB_PX });
  picture.about = build("span", { className: "quiet" }, api.sized(picture.file.size));
  picture.rows = build("ul");
  picture.button = build("button", { type: "button", className: "picture", onclick: () => show(picture) },
    picture.thumb, build("span", {}, build("b", {}, picture.name), picture.about));
  picture.item = build("li", {}, picture.button, picture.rows);
  element("list").append(picture.item);
  pictures.push(picture);
  picture.decoded = decoding = decoding.then(() => decode(picture));
  changed();
  return picture;
}

let decoding = Promise.resolve(); // one after the other: a hundred decoded pictures may not fit

async function decode(picture) {
  let image = await createImageBitmap(picture.shown).catch(() => null);
  if (!image && /\.(tiff?|p[bgpn]m|hei[cf])$/i.test(picture.name)) {
    // What browsers cannot show, the service can turn into what they can.
    picture.shown = await api.upscale(picture.file, SHOWABLE, () => {}).then(({ blob }) => blob, () => picture.file);
    image = await createImageBitmap(picture.shown).catch(() => null);
  }
  if (!image) return;
  Object.assign(picture, { width: image.width, height: image.height });
  picture.about.textContent = `${image.width} × ${image.height}, ${api.sized(picture.file.size)}`;
  const ratio = THUMB_PX / Math.min(image.width, image.height);
  const [width, height] = [image.width * ratio, image.height * ratio];
  const context = picture.thumb.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(image, (THUMB_PX - width) / 2, (THUMB_PX - height) / 2, width, height);
  image.close();
  if (viewer?.picture === picture) viewer.refresh();
}

function show(picture) {
  for (const { button } of pictures) button.removeAttribute("aria-current");
  picture?.button.setAttribute("aria-current", "true");
  viewer.show(picture);
  changed();
}

function remove(picture) {
  tellGone(picture.id);
  for (const { job } of picture.versions) if (job) api.drop(job);
  removeHere(picture);
}

/** Remove what another tab has removed, or this one. */
function removeHere(picture) {
  forget(picture.id);
  pictures.splice(pictures.indexOf(picture), 1);
  for (const { aborting } of picture.versions) aborting?.abort();
  picture.item.remove();
  if (viewer.picture === picture) show(pictures[0] ?? null);
  changed();
}

/** What a reload needs of a picture. */
function remember(picture) {
  const { id, at, name, file, versions } = picture;
  const merged = (record) => {
    if (gone.has(id)) return null; // removed while it was in work
    const plain = versions.filter(({ error }) => !error)
      .map(({ id, settings, job, blob, warnings }) => ({ id, settings, job, blob, warnings }));
    const isUnknown = (stored) => !gone.has(stored.id) && !versions.some(({ id }) => id === stored.id);
    return { id, at, name, file, versions: [...(record?.versions ?? []).filter(isUnknown), ...plain] };
  };
  return (picture.kept = update(id, merged).then(() => tabs.postMessage({ changed: id })));
}

// Other tabs: they show the same pictures, and each version is made by one of them

const tabs = new BroadcastChannel("srgan");
const gone = new Set(); // ids of pictures and versions that were removed, here or there

function tellGone(id) {
  gone.add(id);
  tabs.postMessage({ gone: id });
}

tabs.onmessage = ({ data }) => {
  if (data.changed) return learn(data.changed);
  gone.add(data.gone);
  const [picture, version] = [pictures, versions()].map((all) => all.find(({ id }) => id === data.gone));
  if (picture) removeHere(picture);
  if (version) stopHere(version);
};

/** Take over what another tab has kept. */
async function learn(id) {
  const record = await one(id);
  if (!record || gone.has(id)) return;
  const picture = pictures.find((known) => known.id === id) ?? enter({ ...record, shown: record.file, versions: [] });
  for (const stored of record.versions.filter((stored) => !gone.has(stored.id))) {
    const version = picture.versions.find((known) => known.id === stored.id);
    if (!version) enterVersion(picture, stored);
    else if (stored.blob && !version.blob) {
      Object.assign(version, stored, { stage: "done" });
      draw(version);
      if (viewer.picture === picture) viewer.refresh();
    }
  }
  if (!viewer.picture) show(picture);
}

/** Do `work` on a version when no other tab does; browsers have locks on https and on this machine alone. */
async function alone(version, work) {
  if (!navigator.locks) return work();
  const name = `srgan-${version.id}`, elsewhere = {};
  const result = await navigator.locks.request(name, { ifAvailable: true }, (lock) => (lock ? work() : elsewhere));
  if (result !== elsewhere) return result;
  progress(version, "elsewhere", null);
  return navigator.locks.request(name, { signal: version.aborting.signal }, work);
}

/** Return what another tab has made of a version meanwhile, or make it. */
async function obtained(version) {
  const stored = (await one(version.picture.id))?.versions.find(({ id }) => id === version.id);
  if (stored?.blob) return { blob: stored.blob, warnings: stored.warnings ?? [] };
  version.job ??= stored?.job ?? null;
  return made(version);
}

// Versions: a picture with a model and settings

function makeVersion(picture, wanted) {
  const isSame = ({ settings, error }) => !error && same(settings, wanted);
  return picture.versions.find(isSame) ?? enterVersion(picture, { id: newId(), settings: wanted });
}

function enterVersion(picture, stored) {
  const version = { stage: stored.blob ? "done" : "waiting", fraction: null, tries: 0, job: null, ...stored, picture };
  version.text = build("span", { className: "state" });
  version.label = build("span", { className: "quiet" }, named(version));
  version.note = build("span", { className: "note" });
  version.bar = build("progress", { max: 1, ariaLabel: `${picture.name}, ${named(version)}` });
  const button = (sign, title, onclick) => build("button", { type: "button", title, onclick,
    ariaLabel: `${title} ${picture.name}, ${named(version)}` }, sign);
  version.saving = button("↓", "Download", () => download(version));
  version.again = button("↻", "Try again", () => restart(version));
  version.ending = button("✕", "Remove", () => (picture.versions.length > 1 ? stop(version) : remove(picture)));
  version.row = build("li", {},
    build("div", {}, version.label, version.text, version.note, version.bar),
    version.saving, version.again, version.ending);
  picture.versions.push(version);
  picture.rows.append(version.row);
  remember(picture);
  if (viewer?.picture === picture && picture.versions.length === 1) viewer.right = version.id;
  draw(version);
  pump();
  return version;
}

function restart(version) {
  Object.assign(version, { stage: "waiting", error: null, tries: 0, job: null, id: newId() });
  if (viewer.picture === version.picture) viewer.right = version.id;
  hold = null;
  pump();
}

function stop(version) {
  tellGone(version.id);
  if (version.job) api.drop(version.job);
  stopHere(version);
  remember(version.picture);
}

function stopHere(version) {
  version.aborting?.abort();
  version.row.remove();
  version.picture.versions.splice(version.picture.versions.indexOf(version), 1);
  viewer.refresh();
  changed();
}

/** Begin what may begin now. */
function pump() {
  if (models.length && !keyIsMissing && !(hold && Date.now() < hold.until)) {
    hold = null;
    const free = AT_ONCE - versions().filter(({ sending }) => sending).length;
    versions().filter((version) => isWaiting(version) && !version.sending).slice(0, Math.max(0, free)).forEach(run);
  }
  changed();
}

async function run(version) {
  Object.assign(version, { stage: "starting", fraction: null, sending: true, aborting: new AbortController() });
  // What is on its way is found again after a reload.
  await Promise.all([version.picture.decoded, version.picture.kept]);
  try {
    await alone(version, async () => {
      try {
        Object.assign(version, await obtained(version), { stage: "done" });
        remember(version.picture);
      } finally {
        await version.picture.kept; // before another tab may look
      }
    });
    say([`${version.picture.name} is done`, ...version.warnings].join("; "));
  } catch (error) {
    refused(version, error);
  }
  version.sending = false;
  version.job = version.stage === "failed" ? null : version.job;
  await remember(version.picture);
  draw(version);
  if (viewer.picture === version.picture) {
    const visible = pictures.find(({ width }) => width);
    if (version.error && !version.picture.width && visible) show(visible);
    else viewer.refresh();
  }
  pump();
}

async function made(version) {
  const { picture, settings, aborting: { signal } } = version;
  const tell = (stage, fraction) => progress(version, stage, fraction);
  await picture.file.slice(0, 1).arrayBuffer().catch(() => {
    throw new api.Refusal(0, "unreadable", "This file cannot be read; a folder has to be opened first.");
  });
  const px = picture.width ? picture.width * picture.height : picture.file.size;
  const wanted = sent(picture, settings);
  if (!version.job && !(jobs && px > QUICK_PX)) {
    try {
      const result = await api.upscale(picture.file, wanted, tell, signal);
      const seconds = (performance.now() - version.since) / 1000;
      if (version.stage === "working" && seconds > 0) pxPerS = px / seconds;
      return result;
    } catch (error) {
      if (!jobs || !["takes-too-long", "deadline"].includes(error.code)) throw error;
    }
  }
  if (!version.job) {
    version.job = await api.leave(version.id, picture.file, wanted, tell, signal);
    remember(picture);
  }
  version.sending = false;
  pump();
  return api.follow(version.job, tell, signal);
}

/** Settings as they are sent: what a browser could not show would be no use here, unless it is asked for. */
function sent(picture, settings) {
  return settings.format === "auto" && picture.shown !== picture.file ? { ...settings, format: "png" } : settings;
}

/** Return a result that is no version of its own, for as long as it takes. */
async function madeBeside(picture, wanted) {
  const nothing = () => {};
  let job = null;
  const px = picture.width ? picture.width * picture.height : picture.file.size;
  for (;;) {
    try {
      if (!job && !(jobs && px > QUICK_PX)) {
        try {
          return (await api.upscale(picture.file, wanted, nothing)).blob;
        } catch (error) {
          if (!jobs || !["takes-too-long", "deadline"].includes(error.code)) throw error;
        }
      }
      job ??= await api.leave(newId(), picture.file, wanted, nothing);
      const { blob } = await api.follow(job, nothing);
      api.drop(job);
      return blob;
    } catch (error) {
      if (!error.retryAfterS) throw error;
      say(`${error.message} It is tried again by itself.`);
      await new Promise((resolve) => setTimeout(resolve, 1000 * error.retryAfterS));
    }
  }
}

/** Return a version as a browser can show it. */
async function preview(version) {
  const { picture, settings } = version;
  // The result itself may be above the limits of an upload; then it is made anew.
  const turned = () => api.upscale(version.blob, SHOWABLE, () => {}).then(({ blob }) => blob);
  return (version.preview ??= await turned().catch(() => madeBeside(picture, { ...settings, format: "png" })));
}

/** Return the file of a version with the strength that is chosen, as {name, blob}; the service blends. */
async function fileOf(version) {
  const { picture, settings } = version, { strength } = viewer;
  if (strength === 1) return { name: fileName(picture, version), blob: version.blob };
  version.blended ??= new Map();
  if (!version.blended.has(strength)) {
    version.blended.set(strength, await madeBeside(picture, { ...sent(picture, settings), strength }));
  }
  const blob = version.blended.get(strength);
  return { name: fileName(picture, { ...version, blob }, `_strength${Math.round(strength * 100)}`), blob };
}

/** Do what saves files, and say what keeps it from that. */
async function saving(work) {
  const buttons = [...document.querySelectorAll("#save, #save-all")];
  if (viewer.strength < 1) say(`The service makes it with a strength of ${Math.round(viewer.strength * 100)} %`);
  for (const button of buttons) button.setAttribute("aria-busy", "true");
  try {
    await work();
  } catch (error) {
    say(error.message);
  }
  for (const button of buttons) button.removeAttribute("aria-busy");
}

const download = (version) => saving(async () => {
  const { name, blob } = await fileOf(version);
  save(blob, name);
});

function refused(version, error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof api.Refusal)) error = new api.Refusal(0, "page", `${error}`);
  version.stage = "waiting";
  version.tries++;
  if (error.status === 401) askForKey();
  else if (error.status === 404 && version.job) version.job = null; // it has expired: once more
  else if (error.retryAfterS) wait(error);
  else if (error.code === "engine-failed" && version.tries < TRIES) return;
  else {
    Object.assign(version, { stage: "failed", error });
    say(`${version.picture.name}: ${error.message}`);
  }
}

function wait({ retryAfterS, message }) {
  if (!hold && element("offline").hidden) say(`${message} It is tried again by itself.`);
  // Not all browsers at the same moment.
  hold = { until: Date.now() + (retryAfterS + Math.random()) * 1000, why: message };
}

function askForKey() {
  if (!keyIsMissing) say("This service asks for an API key");
  keyIsMissing = true;
  if (keyWasGiven) element("key-note").textContent = "That key is not accepted.";
  element("key").hidden = false;
  element("key-value").focus();
}

// What is seen of it

function progress(version, stage, fraction) {
  if (version.stage !== stage) Object.assign(version, { stage, since: performance.now(), first: fraction ?? 0 });
  version.fraction = fraction;
  draw(version);
}

/** Seconds that are left and the fraction that is done, as far as they can be known. */
function forecast({ stage, since, fraction, first, picture }) {
  const passed = (performance.now() - since) / 1000;
  if (stage === "working" && fraction === null && pxPerS && picture.width) {
    const whole = (picture.width * picture.height) / pxPerS;
    return [Math.max(0, whole - passed), Math.min(0.95, passed / whole)];
  }
  if (fraction === null || fraction - first < 0.02 || passed < 0.5) return [null, fraction];
  return [(passed * (1 - fraction)) / (fraction - first), fraction];
}

function left(seconds) {
  if (seconds === null) return "";
  if (seconds < 1) return ", nearly done";
  return `, about ${seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`} left`;
}

function draw(version) {
  const { stage, error, row } = version;
  const [seconds, fraction] = forecast(version);
  const isMade = stage === "done", failed = stage === "failed";
  let text = { done: "Done", failed: error?.message, sending: "Sending", queued: "Waiting for its turn at the service",
    working: "Working", elsewhere: "In work in another tab", starting: "Starting" }[stage] ?? "Waiting";
  if (["sending", "working"].includes(stage)) text += left(seconds);
  if (isWaiting(version) && hold) {
    text = `${hold.why} Trying again in ${Math.max(1, Math.ceil((hold.until - Date.now()) / 1000))} s.`;
  }
  if (isMade) text += `, ${api.sized(version.blob.size)}`;
  if (version.text.textContent !== text) {
    version.text.textContent = text;
    if (viewer?.picture === version.picture) viewer.tag();
  }
  row.className = stage;
  version.note.textContent = (version.warnings ?? []).map((text) => text.charAt(0).toUpperCase() + text.slice(1) + ".").join(" ");
  version.bar.hidden = isMade || failed || isWaiting(version);
  if (fraction === null || stage === "starting") version.bar.removeAttribute("value");
  else version.bar.value = fraction;
  version.saving.hidden = !isMade;
  version.again.hidden = !failed;
}

/** What a model is, and in what it computes. */
const described = (model) => [model?.description, model?.precision && `Computes in ${model.precision}.`].filter(Boolean).join(" ");

/** Show what depends on which pictures and versions there are. */
function changed() {
  document.body.classList.toggle("empty", !pictures.length);
  element("pictures").hidden = !pictures.length;
  element("save-all").hidden = versions().filter(({ blob }) => blob).length < 2;
  const wanted = settings();
  element("again").hidden = !viewer?.picture || viewer.picture.versions.some(({ settings }) => same(settings, wanted));
  element("balance").parentElement.hidden = !("balance" in wanted);
  element("balance-value").value = `${Math.round((wanted.balance ?? 0.5) * 100)} %`;
  element("long_side").parentElement.hidden = "scale" in wanted;
  element("quality-label").hidden = LOSSLESS.includes(wanted.format);
  element("about-model").textContent = "balance" in wanted && balanced
    ? `0 % is ${balanced[0]} (true), 100 % is ${balanced[1]} (sharp).`
    : described(models.find(({ name }) => name === wanted.model));
  versions().forEach(draw);
}

const saveAll = () => saving(async () => {
  const taken = new Set(), files = [];
  for (const version of versions().filter(({ blob }) => blob)) {
    const { name: plain, blob } = await fileOf(version);
    let name = plain;
    for (let number = 2; taken.has(name); number++) name = plain.replace(/(\.[^.]*)$/, `-${number}$1`);
    taken.add(name);
    files.push({ name, blob });
  }
  const archive = await zip(files).catch((error) => {
    throw new Error(`The archive cannot be made: ${error.message}. Download the pictures one by one.`);
  });
  save(archive, "upscaled.zip");
});

// From here on things happen

let knocking = null;

api.watch((isThere) => {
  element("offline").hidden = isThere;
  clearInterval(knocking);
  knocking = isThere ? null : setInterval(api.knock, 1000 * KNOCK_EVERY_S);
});

async function begin() {
  try {
    ({ models, balance: balanced, jobs } = await api.offered());
  } catch (error) {
    if (error.status === 401) return askForKey();
    if (element("offline").hidden) say(error.message);
    return setTimeout(begin, 1000 * (error.retryAfterS ?? 5));
  }
  element("key").hidden = true;
  keyIsMissing = false;
  const chosen = models.find((model) => model.default) ?? models[0];
  const options = models.map(({ name }) => new Option(name, name, false, name === chosen.name));
  if (balanced) options.push(new Option("Between true and sharp", BETWEEN));
  element("model").replaceChildren(...options);
  viewer.models = models;
  for (const version of versions()) {
    if (version.settings.model === "") version.settings.model = chosen.name; // it came before the models were known
    version.label.textContent = named(version);
  }
  pump();
}

/** Begin a version of a picture by a model, else as is chosen. */
function makeBy(picture, model) {
  const { balance: _, ...others } = settings();
  return makeVersion(picture, { ...others, model });
}

viewer = new Viewer({ make: makeBy, preview, download });

element("files").onchange = (event) => {
  add(event.target.files);
  event.target.value = ""; // the same file may be chosen again
};
element("settings").onchange = element("settings").oninput = changed;
element("settings").onsubmit = (event) => event.preventDefault();
element("again").onclick = () => viewer.choose("right", makeVersion(viewer.picture, settings()).id);
element("save-all").onclick = saveAll;
element("clear").onclick = () => [...pictures].forEach(remove);
element("key").onsubmit = (event) => {
  event.preventDefault();
  keyWasGiven = true;
  api.useKey(element("key-value").value);
  element("key-value").value = "";
  begin();
};

const files = (transfer) => [...(transfer?.files ?? [])];
addEventListener("paste", (event) => add(files(event.clipboardData)));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dragging"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  add(files(event.dataTransfer));
});
// Time left, countdowns, and what a countdown held back.
setInterval(() => versions().some(({ stage }) => !["done", "failed"].includes(stage)) && pump(), 250);

for (const record of await kept()) {
  if (pictures.some(({ id }) => id === record.id)) continue; // another tab has told of it already
  const picture = enter({ ...record, shown: record.file, versions: [] });
  for (const stored of record.versions) enterVersion(picture, stored);
  if (!picture.versions.length) makeVersion(picture, settings());
}
if (pictures.length) show(pictures[0]);
await begin();
