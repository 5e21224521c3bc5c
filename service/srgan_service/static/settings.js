// The form that says how pictures are enlarged: read, explained, and remembered in this browser.

import { AUTO, BETWEEN, choices, modelOf, resultSize, usual } from "./models.js";

const KEY = "srgan-settings";
const LOSSLESS = ["png", "tiff"];
const FIELDS = ["scale", "format", "long_side", "quality", "balance"];
const element = (id) => document.getElementById(id);
const whole = (text, most) => (Number(text) >= 1 ? Math.min(most, Math.round(text)) : null);

let offer = { models: [], balance: null, limits: null };

const chosen = () => document.querySelector("#models input:checked")?.value ?? AUTO;

/** What is chosen: only what matters, so that the same choice is the same version. `kind`: of another model than chosen. */
export function settings(kind = chosen()) {
  const [scale, format, side, quality, balance] = FIELDS.map((name) => element(name).value);
  const lossy = !LOSSLESS.includes(format) && whole(quality, 100);
  return {
    ...(kind === BETWEEN ? { balance: balance / 100 } : kind !== AUTO && { model: modelOf(kind, offer.models, Number(scale)) }),
    ...(scale ? { scale } : { long_side: whole(side, 100_000) ?? 3000 }),
    format,
    ...(lossy && { quality: lossy }),
    ...(element("metadata").checked && { metadata: "keep" }),
  };
}

export const same = (one, other) => JSON.stringify(Object.entries(one).sort()) === JSON.stringify(Object.entries(other).sort());

/** Offer the models there are, with what was chosen last time. */
export function present(offered) {
  offer = offered;
  const kinds = choices(offer), wanted = remembered().model;
  const checked = kinds.some(({ value }) => value === wanted) ? wanted : usual(offer);
  element("models").replaceChildren(...kinds.map(({ value, title, text, thumb }) => card(value, title, text, thumb, value === checked)));
  element("metadata").closest("label").hidden = !offer.metadata;
}

function card(value, title, text, thumb, checked) {
  const label = document.createElement("label"), input = document.createElement("input"), words = document.createElement("span");
  const name = document.createElement("b"), about = document.createElement("small");
  Object.assign(input, { type: "radio", name: "model", value, checked });
  [name.textContent, about.textContent] = [title, text];
  words.append(name, about);
  label.append(input);
  if (thumb) label.append(Object.assign(new Image(56, 56), { src: thumb, alt: "" }));
  label.append(words);
  return label;
}

/** Show what belongs to the choice; `picture`: whose result's size is told. */
export function explain(picture) {
  const wanted = settings();
  element("balance").closest("label").hidden = !("balance" in wanted);
  element("balance-value").value = `${Math.round((wanted.balance ?? 0.5) * 100)} %`;
  element("long_side").closest("label").hidden = "scale" in wanted;
  element("quality").closest("label").hidden = LOSSLESS.includes(wanted.format);
  element("result-size").textContent = picture?.width ? becomes(picture, wanted) : "";
}

function becomes(picture, wanted) {
  const size = resultSize(picture, wanted), megapixels = (size[0] * size[1]) / 1e6, most = offer.limits?.megapixels;
  if (most && megapixels > most) return `${pixels(...size)} would be too large: results have ${most} megapixels at most.`;
  return `${pixels(picture.width, picture.height)} become ${pixels(...size)}${megapixels >= 1 ? `, ${megapixels.toFixed(1)} megapixels` : ""}.`;
}

/** A size as people write it. */
export const pixels = (width, height) => `${width} × ${height}`;

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {}; // private windows, or something else's
  }
}

/** Keep what is chosen for the next visit. */
export function remember() {
  const values = Object.fromEntries(FIELDS.map((name) => [name, element(name).value]));
  try {
    localStorage.setItem(KEY, JSON.stringify({ ...values, metadata: element("metadata").checked, model: chosen() }));
  } catch {
    // Then it is chosen again.
  }
}

/** Choose what was chosen last time; models follow when they are known. */
export function recall() {
  const { metadata, model: _, ...values } = remembered();
  for (const name of FIELDS) if (values[name] !== undefined) element(name).value = values[name];
  if (element("scale").selectedIndex < 0) element("scale").value = "4";
  if (element("format").selectedIndex < 0) element("format").value = "auto";
  element("metadata").checked = metadata === true;
}
