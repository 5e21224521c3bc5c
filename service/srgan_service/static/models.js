// What models are called on the page: names that say what they do, for all models of a kind, whatever their scale.

export const AUTO = "auto", BETWEEN = "between"; // choices that are no model

// By the name of a model without its scale; each has a picture in thumbs/, made by tools/make_thumbnails.py.
const KINDS = {
  [AUTO]: ["Auto", "Chooses by the file"],
  srgan: ["Sharp", "Crisp, partly invented"],
  srresnet: ["Faithful", "True, a little softer"],
  "srgan-photo": ["Clean up", "No blocks, no noise"],
  [BETWEEN]: ["In between", "You set how sharp"],
};

const kindOf = (model) => model.replace(/-x\d+/, "");

/** What a model is called. */
export const titled = (model) => KINDS[kindOf(model)]?.[0] ?? model;

/** What can be chosen of what the service offers: [{value, title, text, thumb}]. */
export function choices({ models, balance, auto }) {
  const place = (kind) => (kind in KINDS ? Object.keys(KINDS).indexOf(kind) : Infinity);
  const kinds = [...new Set(models.map(({ name }) => kindOf(name)))].sort((a, b) => place(a) - place(b) || 0);
  if (auto && kinds.length > 1) kinds.unshift(AUTO);
  if (balance) kinds.push(BETWEEN);
  return kinds.map((value) => {
    const [title, text] = KINDS[value] ?? [value, models.find(({ name }) => kindOf(name) === value).description];
    return { value, title, text, thumb: KINDS[value] ? `static/thumbs/${value}.webp` : null };
  });
}

/** The choice that stands for the service's own. */
export const usual = ({ models, auto }) => {
  const model = models.find((model) => model.default) ?? models[0];
  return auto && new Set(models.map(({ name }) => kindOf(name))).size > 1 ? AUTO : kindOf(model.name);
};

/** The model of a kind that enlarges so many times best: the least that is enough, else the largest. */
export function modelOf(kind, models, scale) {
  const alike = models.filter(({ name }) => kindOf(name) === kind).sort((a, b) => a.scale - b.scale);
  return (alike.find((model) => scale && model.scale >= scale) ?? alike.at(-1)).name;
}

/** What was chosen for a version, as `choices` call it. */
export const choiceOf = ({ model, balance }) => (model ? titled(model) : KINDS[balance === undefined ? AUTO : BETWEEN][0]);

/** What a version of a picture is called. */
export function named({ settings, model }) {
  const { balance, scale, long_side: side, format, quality } = settings;
  let by = choiceOf(settings);
  if (balance !== undefined) by += ` ${Math.round(balance * 100)} %`;
  else if (!settings.model && model) by += ` (${titled(model)})`;
  const parts = [by, side ? `${side} px` : `×${scale}`];
  if (format !== "auto") parts.push(format.toUpperCase());
  if (quality) parts.push(`quality ${quality}`);
  return parts.join(" ");
}

/** How large the result is, in pixels; as the service rounds it. */
export function resultSize({ width, height }, { scale, long_side: side }) {
  const times = side ? side / Math.max(width, height) : Number(scale);
  return [width, height].map((length) => Math.max(1, Math.round(length * times)));
}
