// The page: pictures come in, versions of them are made one after the other, and what happens is said.
//
//     app -> work -> api     results, and the service       app -> viewer -> compare, player    looking at them
//     app -> settings        what is to be made             app -> downloads -> zip             taking them home
//     app -> store           what a reload finds again      app -> batch, notice                how far it is

import * as api from "./api.js";
import * as batch from "./batch.js";
import { fileName, save, saveAll } from "./downloads.js";
import * as folders from "./files.js";
import { named, resultSize } from "./models.js";
import { keepFocus, say } from "./notice.js";
import { explain, pixels, present, recall, remember as rememberSettings, same, settings } from "./settings.js";
import { change, forget, kept, one } from "./store.js";
import { Viewer } from "./viewer.js";
import * as work from "./work.js";

const AT_ONCE = 3; // pictures on their way to the service
const KNOCK_EVERY_S = 5; // at a service that cannot be reached
const TRIES = 3; // of an upscaler that fails, which may be a matter of that moment
const THUMB_PX = 144;

const element = (id) => document.getElementById(id);
const SHOWABLE = { scale: 1, strength: 0, format: "png" }; // the same picture, as every browser shows it
const newId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");

const pictures = [];
let offer = null, viewer = null;
let hold = null; // {until, why}: nothing is sent before
let keyIsMissing = false, keyWasGiven = false;

const isWaiting = (version) => version.stage === "waiting";
const versions = () => pictures.flatMap((picture) => picture.versions);
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

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

/** Take in files, as [{file, path}]. */
function add(given) {
  const { pictures: files, others } = folders.sorted(given);
  const added = files.map(({ file, path }) => {
    const name = path.split("/").at(-1);
    return enter({ id: newId(), at: Date.now(), name, path, file, shown: file, versions: [] });
  });
  for (const picture of added) makeVersion(picture, settings());
  if (added.length) show(viewer.picture?.width ? viewer.picture : added[0]);
  const left = others && `${plural(others, "other file")} left out`;
  if (given.length) say([added.length ? `${added.length} added` : "There are no pictures in it", left].filter(Boolean).join("; "));
}

/** Put a picture into the list. */
function enter(picture) {
  picture.thumb = build("canvas", { width: THUMB_PX, height: THUMB_PX });
  picture.state = build("small");
  picture.rows = build("ul", { hidden: true });
  picture.button = build("button", { type: "button", className: "picture", title: picture.path ?? picture.name, tabIndex: -1,
    onclick: () => show(picture) }, picture.thumb, build("b", {}, picture.name), picture.state);
  picture.item = build("li", {}, picture.button);
  element("list").append(picture.item);
  element("versions").append(picture.rows);
  pictures.push(picture);
  picture.decoded = decoding = decoding.then(() => decode(picture));
  changed();
  return picture;
}

let decoding = Promise.resolve(); // one after the other: a hundred decoded pictures may not fit

async function decode(picture) {
  let image = await createImageBitmap(picture.shown).catch(() => null);
  if (!image && /\.(tiff?|p[bgpn]m|hei[cf]|jxl)$/i.test(picture.name)) {
    // What browsers cannot show, the service can turn into what they can.
    picture.shown = await api.upscale(picture.file, SHOWABLE, () => {}).then(({ blob }) => blob, () => picture.file);
    image = await createImageBitmap(picture.shown).catch(() => null);
  }
  if (!image) return;
  Object.assign(picture, { width: image.width, height: image.height });
  const ratio = THUMB_PX / Math.min(image.width, image.height);
  const [width, height] = [image.width * ratio, image.height * ratio];
  const context = picture.thumb.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(image, (THUMB_PX - width) / 2, (THUMB_PX - height) / 2, width, height);
  image.close();
  if (viewer?.picture === picture) viewer.refresh();
  changed();
}

function show(picture) {
  for (const other of pictures) {
    other.button.removeAttribute("aria-current");
    other.button.tabIndex = -1; // arrow keys go from one to the next
    other.rows.hidden = other !== picture;
  }
  if (picture) {
    picture.button.setAttribute("aria-current", "true");
    picture.button.tabIndex = 0;
    picture.button.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
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
  const place = pictures.indexOf(picture);
  pictures.splice(place, 1);
  for (const version of picture.versions) {
    version.aborting?.abort();
    batch.leave(version);
  }
  picture.item.remove();
  picture.rows.remove();
  if (viewer.picture === picture) show(pictures[place] ?? pictures.at(-1) ?? null);
  changed();
}

/** Remove pictures at once, and keep in mind for a while what brings them back. */
function clear(all) {
  const before = all.map((picture) => ({ picture, versions: [...picture.versions] }));
  const shown = viewer.picture;
  if (all.length > 1) show(null); // not each of them in turn
  all.forEach(remove);
  say(`${plural(all.length, "picture")} removed`, () => {
    for (const { picture, versions } of before) {
      const { name, path, file, shown: visible } = picture;
      // Other tabs know the old ones as gone for good.
      const again = enter({ id: newId(), at: Date.now(), name, path, file, shown: visible, versions: [] });
      for (const { settings, blob, warnings, model, error } of versions) {
        enterVersion(again, { id: newId(), settings, blob, warnings, model, ...(error && { error, stage: "failed" }) });
      }
      if (picture === shown || !viewer.picture) show(again);
    }
  });
  keepFocus();
}

/** What a reload needs of a picture. */
function remember(picture) {
  const { id, at, name, path, file, versions } = picture;
  const merged = (record) => {
    if (gone.has(id)) return null; // removed while it was in work
    const plain = versions.filter(({ error }) => !error)
      .map(({ id, settings, job, blob, warnings, model }) => ({ id, settings, job, blob, warnings, model }));
    const isUnknown = (stored) => !gone.has(stored.id) && !versions.some(({ id }) => id === stored.id);
    return { id, at, name, path, file, versions: [...(record?.versions ?? []).filter(isUnknown), ...plain] };
  };
  return (picture.kept = change(id, merged).then(() => tabs.postMessage({ changed: id })));
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
  if (stored?.blob) return { blob: stored.blob, warnings: stored.warnings ?? [], model: stored.model };
  version.job ??= stored?.job ?? null;
  return work.made(version, (stage, fraction) => progress(version, stage, fraction), () => {
    remember(version.picture);
    version.sending = false;
    pump();
  });
}

// Versions: a picture with a model and settings

function makeVersion(picture, wanted) {
  const isSame = ({ settings, error }) => !error && same(settings, wanted);
  return picture.versions.find(isSame) ?? enterVersion(picture, { id: newId(), settings: wanted, isEarly: !offer });
}

function enterVersion(picture, stored) {
  const version = { stage: stored.blob ? "done" : "waiting", fraction: null, tries: 0, job: null, ...stored, picture };
  version.text = build("span", { className: "state" });
  version.label = build("b");
  version.note = build("span", { className: "note" });
  version.bar = build("progress", { max: 1 });
  version.saving = build("button", { type: "button", onclick: () => download(version) }, "↓");
  version.again = build("button", { type: "button", onclick: () => restart(version) }, "↻");
  version.ending = build("button", { type: "button",
    onclick: () => (picture.versions.length > 1 ? stop(version) : clear([picture])) }, "✕");
  version.row = build("li", {},
    build("div", {}, version.label, version.text, version.note, version.bar),
    version.saving, version.again, version.ending);
  label(version);
  picture.versions.push(version);
  picture.rows.append(version.row);
  if (isWaiting(version)) batch.join(version);
  remember(picture);
  if (viewer?.picture === picture && picture.versions.length === 1) viewer.right = version.id;
  draw(version);
  pump();
  return version;
}

/** Write a version's name wherever it is. */
function label(version) {
  const name = named(version), full = `${version.picture.name}, ${name}`;
  version.label.textContent = name;
  version.bar.ariaLabel = full;
  for (const [button, title] of [[version.saving, "Download"], [version.again, "Try again"], [version.ending, "Remove"]]) {
    Object.assign(button, { title, ariaLabel: `${title} ${full}` });
  }
}

function restart(version) {
  batch.join(version);
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
  batch.leave(version);
  version.row.remove();
  version.picture.versions.splice(version.picture.versions.indexOf(version), 1);
  viewer.refresh();
  changed();
}

/** Begin what may begin now, the picture that is looked at first. */
function pump() {
  if (offer && !keyIsMissing && !(hold && Date.now() < hold.until)) {
    hold = null;
    const free = AT_ONCE - versions().filter(({ sending }) => sending).length;
    const isShown = ({ picture }) => picture === viewer.picture;
    const waiting = versions().filter((version) => isWaiting(version) && !version.sending).sort((a, b) => isShown(b) - isShown(a));
    waiting.slice(0, Math.max(0, free)).forEach(run);
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
    label(version);
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

const aside = (picture, wanted) => work.madeBeside(picture, wanted, (message) => say(`${message} It is tried again by itself.`));

/** Return a version as a browser can show it. */
async function preview(version) {
  const { picture, settings } = version;
  // The result itself may be above the limits of an upload; then it is made anew.
  const turned = () => api.upscale(version.blob, SHOWABLE, () => {});
  return (version.preview ??= (await turned().catch(() => aside(picture, { ...settings, format: "png" }))).blob);
}

/** Return a part of a version's result as it will be; null where that fails, for the whole comes anyhow. */
async function region(version, place, signal) {
  const { quality: _, ...wanted } = version.settings;
  const asked = { ...wanted, format: "png", region: place.join() };
  return api.upscale(version.picture.file, asked, () => {}, signal).then(({ blob }) => blob, () => null);
}

/** Return {blob, invented}: where and how much of a version is invented, with the strength that is chosen. */
async function map(version) {
  const { quality: _, format: __, metadata: ___, ...wanted } = version.settings;
  return aside(version.picture, { ...wanted, map: true, strength: viewer.strength }).catch((error) => {
    say(error.message);
    return null;
  });
}

/** Return the file of a version with the strength that is chosen, as {picture, name, blob}; the service blends. */
async function fileOf(version) {
  const { picture, settings } = version, { strength } = viewer;
  if (strength === 1) return { picture, name: fileName(picture, version), blob: version.blob };
  version.blended ??= new Map();
  if (!version.blended.has(strength)) {
    version.blended.set(strength, (await aside(picture, { ...work.sent(picture, settings), strength })).blob);
  }
  const blob = version.blended.get(strength);
  return { picture, name: fileName(picture, { ...version, blob }, `_strength${Math.round(strength * 100)}`), blob };
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

const downloadAll = () => saving(async () => {
  const files = [];
  for (const version of versions().filter(({ blob }) => blob)) files.push(await fileOf(version));
  await saveAll(files);
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
  const passed = (performance.now() - since) / 1000, whole = work.expectedS(picture);
  if (stage === "working" && fraction === null && whole) {
    return [Math.max(0, whole - passed), Math.min(0.95, passed / whole)];
  }
  if (fraction === null || fraction - first < 0.02 || passed < 0.5) return [null, fraction];
  return [(passed * (1 - fraction)) / (fraction - first), fraction];
}

const STAGES = { done: "Done", sending: "Sending", queued: "Waiting for its turn at the service", working: "Working",
  elsewhere: "In work in another tab", starting: "Starting" };

/** How far a version is, in words. */
function worded(version, seconds) {
  const { stage, error, picture, settings, blob } = version;
  if (error) return error.message;
  if (isWaiting(version) && hold) return `${hold.why} Trying again in ${Math.max(1, Math.ceil((hold.until - Date.now()) / 1000))} s.`;
  const size = version.size ?? (picture.width && resultSize(picture, settings));
  const parts = [STAGES[stage] ?? "Waiting"];
  if (["sending", "working"].includes(stage) && seconds !== null) parts.push(batch.left(seconds));
  if (stage === "done") parts.push(...(size ? [pixels(...size)] : []), api.sized(blob.size));
  return parts.join(", ");
}

function draw(version) {
  const { stage, picture } = version;
  const [seconds, fraction] = forecast(version);
  const isMade = stage === "done", failed = stage === "failed";
  version.text.textContent = worded(version, seconds);
  version.row.className = stage;
  version.note.textContent = (version.warnings ?? []).map((text) => text.charAt(0).toUpperCase() + text.slice(1) + ".").join(" ");
  version.bar.hidden = isMade || failed || isWaiting(version);
  if (fraction === null || stage === "starting") version.bar.removeAttribute("value");
  else version.bar.value = fraction;
  version.saving.hidden = !isMade;
  version.again.hidden = !failed || version.error.lasting;
  if (viewer?.picture === picture) viewer.tag();
}

/** Show in the list how far a picture is. */
function sum(picture) {
  const stages = picture.versions.map(({ stage }) => stage);
  const state = stages.find((stage) => !["done", "failed", "waiting"].includes(stage))
    ?? ["waiting", "failed", "done"].find((stage) => stages.includes(stage));
  const going = picture.versions.find(({ stage }) => stage === state), part = going && forecast(going)[1];
  const isGoing = !["done", "failed", "waiting"].includes(state);
  const text = isGoing && part ? `${Math.round(100 * part)} %` : { done: "Done", failed: "Failed", waiting: "Waiting" }[state] ?? "Working";
  if (picture.state.textContent !== text) picture.state.textContent = text;
  picture.item.className = isGoing ? "working" : state;
}

let isChanged = false;

/** Have the page show what there is, once however much has changed. */
function changed() {
  if (!isChanged) queueMicrotask(update);
  isChanged = true;
}

function update() {
  isChanged = false;
  versions().forEach(draw);
  pictures.forEach((picture) => picture.versions.length && sum(picture));
  batch.show((version) => forecast(version)[1]);
  const shown = viewer?.picture, wanted = settings();
  const lacks = ({ versions }) => !versions.some((version) => same(version.settings, wanted));
  document.body.classList.toggle("empty", !pictures.length);
  element("pictures-title").textContent = pictures.length ? plural(pictures.length, "picture") : "Pictures";
  element("save-all").hidden = versions().filter(({ blob }) => blob).length < 2;
  element("chosen").hidden = !shown;
  if (shown) {
    element("chosen-name").textContent = shown.name;
    element("chosen-about").textContent = [shown.width && pixels(shown.width, shown.height), api.sized(shown.file.size)].filter(Boolean).join(", ");
  }
  element("again").hidden = !shown || !lacks(shown);
  element("apply").hidden = pictures.length < 2 || !pictures.some(lacks);
  element("apply").textContent = `Apply to all ${pictures.length}`;
  element("invention").hidden = !offer?.maps;
  explain(shown);
  keepFocus();
}

// From here on things happen

let knocking = null;

api.watch((isThere) => {
  element("offline").hidden = isThere;
  clearInterval(knocking);
  knocking = isThere ? null : setInterval(api.knock, 1000 * KNOCK_EVERY_S);
});

async function begin() {
  try {
    offer = await api.offered();
  } catch (error) {
    if (error.status === 401) return askForKey();
    if (element("offline").hidden) say(error.message);
    return setTimeout(begin, 1000 * (error.retryAfterS ?? 5));
  }
  element("key").hidden = true;
  keyIsMissing = false;
  work.use(offer);
  viewer.offer = offer;
  present(offer);
  for (const version of versions()) {
    if (version.isEarly && isWaiting(version)) version.settings = settings(); // which models there are was not known
    label(version);
  }
  pump();
}

/** Begin a version of a picture by a model, else as is chosen. */
const makeBy = (picture, kind) => makeVersion(picture, settings(kind));

function applyToAll() {
  const wanted = settings();
  for (const picture of pictures) makeVersion(picture, wanted);
  const version = viewer.picture?.versions.find((version) => same(version.settings, wanted));
  if (version) viewer.choose("right", version.id);
  say(`All ${pictures.length} are made so`);
}

recall();
viewer = new Viewer({ make: makeBy, preview, download, region, map, sized: draw });

element("folder").closest("label").hidden = !("webkitdirectory" in element("folder"));
for (const id of ["files", "folder"]) {
  element(id).onchange = (event) => {
    add(folders.plain(event.target.files));
    event.target.value = ""; // the same file may be chosen again
  };
}
element("settings").onchange = element("settings").oninput = () => {
  rememberSettings();
  changed();
};
element("settings").onsubmit = (event) => event.preventDefault();
element("again").onclick = () => viewer.choose("right", makeVersion(viewer.picture, settings()).id);
element("apply").onclick = applyToAll;
element("save-all").onclick = downloadAll;
element("clear").onclick = () => clear([...pictures]);
element("notify").onclick = async () => say(await batch.toggle());
element("list").onkeydown = (event) => {
  const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
  const place = pictures.indexOf(viewer.picture) + (steps[event.key] ?? NaN);
  if (Number.isNaN(place)) return;
  event.preventDefault();
  const picture = pictures[Math.min(Math.max(place, 0), pictures.length - 1)];
  show(picture);
  picture.button.focus();
};
element("key").onsubmit = (event) => {
  event.preventDefault();
  keyWasGiven = true;
  api.useKey(element("key-value").value);
  element("key-value").value = "";
  begin();
};

addEventListener("focus", changed); // whoever comes back has seen what is in the title
addEventListener("paste", (event) => add(folders.plain(event.clipboardData.files)));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dragging"));
addEventListener("drop", async (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  await folders.dropped(event.dataTransfer).then(add, () => say("What was dropped cannot be read"));
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
