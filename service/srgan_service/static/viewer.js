// The comparison below the tools: what stands left and right, how strong, and what is downloaded.

import { Compare } from "./compare.js";

const MAX_EXACT_PX = 40e6; // above it, the browser's own smoothing stands in for bicubic
const element = (id) => document.getElementById(id);
const worker = new Worker(new URL("bicubic.js", import.meta.url), { type: "module" });

/** What a version of a picture is called. */
export function named({ settings: { model, balance, scale, long_side: side, format, quality } }) {
  const parts = [model ?? `balance ${Math.round(balance * 100)} %`, side ? `${side} px` : `×${scale}`];
  if (format !== "auto") parts.push(format.toUpperCase());
  if (quality) parts.push(`quality ${quality}`);
  return parts.join(" ");
}

/** How many times larger than its picture a version is to be. */
const times = ({ settings: { scale, long_side: side } }, { width, height }) => (side ? side / Math.max(width, height) : Number(scale));

/** Save a blob as a file. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** The name of a version's file: what the command line would call it, with the model if there are several. */
export function fileName(picture, version, extra = "") {
  const suffix = { "image/jpeg": "jpg", "image/x-portable-anymap": "ppm" }[version.blob.type];
  const { model, balance, scale, long_side: side, quality } = version.settings;
  const size = side ? `${side}px` : `x${scale}`;
  const rivals = picture.versions.filter(({ settings }) => settings.scale === scale && settings.long_side === side);
  const by = rivals.length > 1 ? `_${model ?? `balance${Math.round(balance * 100)}`}${quality ? `_q${quality}` : ""}` : "";
  const stem = picture.name.replace(/\.[^.]*$/, "");
  return `${stem}${by}_${size}${extra}.${suffix ?? version.blob.type.split("/")[1]}`;
}

export class Viewer {
  /**
   * `make(picture, model)` begins a new version and returns it. `preview(version)` returns it as the browser can show it.
   * `download(version)` saves its file.
   */
  constructor({ make, preview, download }) {
    Object.assign(this, { make, preview, models: [], picture: null, strength: 1 });
    this.compare = new Compare(...["stage", "canvas", "handle", "checker"].map(element));
    element("strength").oninput = (event) => {
      this.strength = event.target.value / 100;
      element("strength-value").value = `${event.target.value} %`;
      this.refresh();
    };
    for (const side of ["left", "right"]) element(side).onchange = (event) => this.choose(side, event.target.value);
    element("zoom-in").onclick = () => this.compare.zoomBy(1.5);
    element("zoom-out").onclick = () => this.compare.zoomBy(1 / 1.5);
    element("zoom-fit").onclick = () => this.compare.fit();
    element("zoom-one").onclick = () => this.compare.actual();
    element("beside").onclick = ({ currentTarget: button }) => {
      const beside = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", beside);
      this.compare.setBeside(beside);
    };
    element("save").onclick = () => download(this.version(this.right));
  }

  show(picture) {
    element("viewer").hidden = !picture;
    if (this.picture !== picture) {
      this.compare.left = null;
      this.images?.forEach((loading) => loading.then((image) => image?.close(), () => {}));
      this.views = new Map(); // of versions: "loading", "there" or "none"
      this.images = new Map(); // decoded pictures are large: those of one picture at a time
      this.left = "original";
      this.right = picture?.versions.at(-1)?.id ?? "original";
      this.picture = picture;
    }
    this.refresh();
  }

  choose(side, value) {
    this[side] = value.startsWith("make:") ? this.make(this.picture, value.slice(5)).id : value;
    this.refresh();
  }

  version(id) {
    return this.picture.versions.find((version) => version.id === id);
  }

  /** Show what is there now. What must be decoded first comes later, if it is still wanted then. */
  async refresh() {
    const { picture } = this;
    const turn = (this.turn = {});
    if (!picture) return;
    this.fill();
    this.tag();
    const [left, right] = [this.version(this.left), this.version(this.right)];
    const ready = [left, right].map((version) => version?.blob && this.image(version.id, version.blob, version));
    const original = picture.width ? this.image("original", picture.shown) : null;
    const images = await Promise.all([original, ...ready]);
    if (turn !== this.turn) return;
    const largest = images.slice(1).filter(Boolean).sort((a, b) => b.width - a.width)[0];
    const one = right ?? left;
    const scale = one ? times(one, picture) : 4;
    const size = [picture.width, picture.height].map((side) => Math.max(1, Math.round(side * scale)));
    const [width, height] = largest ? [largest.width, largest.height] : size;
    element("save").disabled = !right?.blob;
    element("strength").disabled = !right?.blob || !images[0];
    element("stage").classList.toggle("bare", !(images[0] || largest));
    if (!(images[0] || largest)) return;
    const exact = images[0] && this.base(images[0], width, height);
    this.lay(images, images[0], largest, width, height);
    const base = await exact;
    if (turn === this.turn && base !== images[0]) this.lay(images, base, largest, width, height);
  }

  /** Put what is there onto the stage. `images`: the original, the left and the right version, where there are any. */
  lay(images, base, largest, width, height) {
    const sides = [this.left, this.right].map((chosen, index) => {
      const image = images[index + 1];
      if (image) return { image, base, strength: index ? this.strength : 1 };
      return { image: (chosen === "pixels" ? images[0] : base) ?? largest, strength: 1, hard: chosen === "pixels" };
    });
    element("stage").style.setProperty("--shape", width / height);
    this.compare.show(...sides, width, height);
    const [leftText, rightText] = this.tag();
    element("canvas").setAttribute("aria-label", `${this.picture.name}. Left: ${leftText}; right: ${rightText}`);
  }

  /** Write what the sides show into their corners, and return it. */
  tag() {
    const texts = ["left", "right"].map((side) => {
      const version = this.version(this[side]);
      if (!version) return "Original";
      if (!version.blob) return `${named(version)}: ${version.error ? "failed" : version.text.textContent}`;
      const view = this.views.get(version.id);
      if (view === "none") return `Original, as this browser cannot show ${named(version)}`;
      if (view === "loading") return `${named(version)}: drawing`;
      const percent = Math.round(this.strength * 100);
      return named(version) + (side === "right" && percent < 100 ? `, ${percent} %` : "");
    });
    ["left-tag", "right-tag"].forEach((id, index) => (element(id).textContent = texts[index]));
    return texts;
  }

  fill() {
    const { picture } = this;
    const made = new Set(picture.versions.map(({ settings }) => settings.model));
    for (const side of ["left", "right"]) {
      const options = [new Option("Original", "original"), new Option("Original, pixels", "pixels")];
      for (const version of picture.versions) if (!version.error) options.push(new Option(named(version), version.id));
      for (const { name } of this.models) if (!made.has(name)) options.push(new Option(`Make with ${name}`, `make:${name}`));
      if (!options.some(({ value }) => value === this[side])) this[side] = "original";
      const select = element(side), value = this[side];
      if ([...select.options].map((o) => o.value + o.text).join() !== options.map((o) => o.value + o.text).join()) {
        select.replaceChildren(...options);
      }
      select.value = value;
    }
  }

  /** The decoded picture, null if there is none; of a version that the browser cannot show, the service's preview. */
  image(id, blob, version = null) {
    const { images, views } = this;
    if (!images.has(id)) {
      const shown = () => this.preview(version).then(createImageBitmap);
      views.set(id, "loading");
      images.set(id, createImageBitmap(blob).catch(() => version && shown()).catch(() => null).then((image) => {
        views.set(id, image ? "there" : "none");
        return image;
      }));
    }
    return images.get(id);
  }

  /** The original enlarged to that size, by bicubic interpolation where memory allows. */
  base(original, width, height) {
    const id = `base ${width}x${height}`;
    if (width * height > MAX_EXACT_PX) return original;
    if (!this.images.has(id)) {
      this.images.set(id, new Promise((resolve) => {
        const { port1, port2 } = new MessageChannel();
        port1.onmessage = ({ data }) => resolve(data ?? original);
        worker.postMessage({ image: original, width, height, port: port2 }, [port2]);
      }));
    }
    return this.images.get(id);
  }
}
