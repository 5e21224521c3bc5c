// The comparison: what stands left and right, how strong, what of it is invented, and what is there before the whole is.

import { Compare } from "./compare.js";
import { BETWEEN, choiceOf, choices, named, resultSize } from "./models.js";
import { moving } from "./player.js";

const MAX_EXACT_PX = 40e6; // above it, the browser's own smoothing stands in for bicubic
const REGION_S = 1; // how long a region may take to be made
const FIRST_REGION_PX = 256 * 192; // before it is known how fast the service is
const LARGEST_REGION_PX = 1024 * 1024;
const LEAST_REGION_PX = 128 * 96;
const SETTLED_MS = 300; // after which what is seen is what is looked at
const element = (id) => document.getElementById(id);
const worker = new Worker(new URL("bicubic.js", import.meta.url), { type: "module" });

/** How many pixels of [x, y, width, height] a patch covers. */
function overlap(patch, [x, y, width, height]) {
  const along = (at, length, from, size) => Math.max(0, Math.min(at + length, from + size) - Math.max(at, from));
  return along(x, width, patch.x, patch.width) * along(y, height, patch.y, patch.height);
}

export class Viewer {
  /**
   * `make(picture, kind)` begins a new version and returns it. `preview(version)` returns it as the browser can show it.
   * `download(version)` saves its file. `region(version, [x, y, width, height], signal)` returns that part of its result,
   * or null; `map(version)` returns {blob, invented} of what is invented. `sized(version)` is told when its size is known.
   */
  constructor(hands) {
    Object.assign(this, hands, { offer: { models: [] }, picture: null, strength: 1, inventing: false });
    this.playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.compare = new Compare(...["stage", "canvas", "handle", "checker"].map(element), (percent) => {
      element("zoom").value = `${percent} %`;
      this.askForRegion();
    });
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
    this.pressed("beside", false, (beside) => this.compare.setBeside(beside));
    this.pressed("play", this.playing, (playing) => {
      this.playing = playing;
      this.refresh();
    });
    this.pressed("invented", false, (inventing) => {
      this.inventing = inventing;
      this.refresh();
    });
    this.pressed("full", false, (full) => (full ? element("viewer").requestFullscreen() : document.exitFullscreen()));
    element("full").hidden = !document.fullscreenEnabled;
    document.onfullscreenchange = () => element("full").setAttribute("aria-pressed", document.fullscreenElement !== null);
    element("save").onclick = () => this.download(this.version(this.right));
  }

  /** A button that stays down until it is pressed again. */
  pressed(id, isDown, act) {
    const button = element(id);
    button.setAttribute("aria-pressed", isDown);
    button.onclick = () => {
      const down = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", down);
      act(down);
    };
  }

  show(picture) {
    element("viewer").hidden = !picture;
    if (this.picture !== picture) {
      this.compare.left = null;
      this.images?.forEach((loading) => loading.then((image) => image?.close(), () => {}));
      this.views = new Map(); // of versions: "loading", "there" or "none"
      this.images = new Map(); // decoded pictures are large: those of one picture at a time
      this.maps = new Map(); // of versions and strengths
      this.films = new Map(); // of files: what decodes their frames
      this.patch = null; // the region that is there before the whole
      this.left = "original";
      this.right = picture?.versions.at(-1)?.id ?? "original";
      this.picture = picture;
      this.frame = 0;
    }
    this.refresh();
  }

  choose(side, value) {
    this[side] = value.startsWith("make:") ? this.make(this.picture, value.slice(5)).id : value;
    this.refresh();
  }

  version(id) {
    return this.picture?.versions.find((version) => version.id === id);
  }

  /** Show what is there now. What must be decoded first comes later, if it is still wanted then. */
  async refresh() {
    const { picture } = this;
    const turn = (this.turn = {});
    if (!picture) return;
    this.fill();
    this.tag();
    const [left, right] = [this.version(this.left), this.version(this.right)];
    if (this.asking?.id !== right?.id || right?.blob) this.asking?.abort();
    const ready = [left, right].map((version) => version?.blob && this.image(version.id, version.blob, version));
    const original = picture.width ? this.image("original", picture.shown) : null;
    const images = await Promise.all([original, ...ready]);
    if (turn !== this.turn) return;
    const largest = images.slice(1).filter(Boolean).sort((a, b) => b.width - a.width)[0];
    const settings = (right ?? left)?.settings ?? { scale: 4 };
    const [width, height] = largest ? [largest.width, largest.height] : resultSize(picture, settings);
    element("save").disabled = !right?.blob;
    element("strength").disabled = element("invented").disabled = !right?.blob || !images[0];
    element("stage").classList.toggle("bare", !(images[0] || largest));
    if (!(images[0] || largest)) return;
    const exact = images[0] && this.base(images[0], width, height);
    const map = this.inventing && images[2] ? this.mapOf(right) : null;
    this.lay(images, images[0], largest, width, height);
    const base = await exact;
    if (turn !== this.turn) return;
    if (base !== images[0]) this.lay(images, base, largest, width, height);
    if (map) await map.then((overlay) => turn === this.turn && this.lay(images, base, largest, width, height, overlay));
    else this.play(turn, [picture.shown, left?.blob, right?.blob], images, base, largest, width, height).catch(() => {}); // stills stay
  }

  /** Put what is there onto the stage. `images`: the original, the left and the right version, where there are any. */
  lay(images, base, largest, width, height, overlay = null) {
    const [left, right] = [this.left, this.right].map((chosen, index) => {
      const image = images[index + 1];
      if (image) return { image, base, strength: index ? this.strength : 1, overlay: index ? overlay : null };
      return { image: (chosen === "pixels" ? images[0] : base) ?? largest, strength: 1, hard: chosen === "pixels" };
    });
    const isMissing = this.version(this.right) && !images[2];
    if (isMissing && this.patch?.id === this.right) right.patch = this.patch;
    // Two sides that show the same are no comparison.
    const isSame = !images[1] && !images[2] && !right.patch && left.hard === right.hard;
    const alone = (isMissing && !right.patch) || this.left === this.right || isSame;
    element("stage").style.setProperty("--shape", width / height);
    element("stage").classList.toggle("alone", alone);
    // What cannot be shown says so in the place of what is shown instead.
    const isUnshown = alone && Boolean(this.version(this.right)?.blob);
    [element("left-tag").hidden, element("right-tag").hidden] = [isUnshown, alone && !isUnshown];
    this.compare.show(left, alone ? null : right, width, height);
    const [leftText, rightText] = this.tag();
    element("canvas").setAttribute("aria-label", `${this.picture.name}. Left: ${leftText}; right: ${rightText}`);
  }

  /** Write what the sides show into their corners, and how far it is; return what the sides show. */
  tag() {
    const texts = ["left", "right"].map((side) => {
      const version = this.version(this[side]);
      if (!version) return "Original";
      if (!version.blob && this.patch?.id === version.id) return `${named(version)}: this part first`;
      if (!version.blob) return `${named(version)}: ${version.error ? "failed" : version.text.textContent}`;
      const view = this.views.get(version.id);
      if (view === "none") return `Original, as this browser cannot show ${named(version)}`;
      if (view === "loading") return `${named(version)}: drawing`;
      const percent = Math.round(this.strength * 100);
      return named(version) + (side === "right" && percent < 100 ? `, ${percent} %` : "");
    });
    ["left-tag", "right-tag"].forEach((id, index) => (element(id).textContent = texts[index]));
    const missing = [this.right, this.left].map((id) => this.version(id)).find((version) => version && !version.blob);
    element("busy").hidden = !missing;
    if (missing) {
      element("busy").classList.toggle("failed", Boolean(missing.error));
      element("busy-text").textContent = missing.text.textContent;
      element("busy-bar").hidden = missing.bar.hidden;
      if (missing.bar.hasAttribute("value")) element("busy-bar").value = missing.bar.value;
      else element("busy-bar").removeAttribute("value");
    }
    return texts;
  }

  fill() {
    const { picture } = this;
    const made = new Set(picture.versions.map(({ settings }) => choiceOf(settings)));
    const makes = choices(this.offer).filter(({ value, title }) => value !== BETWEEN && !made.has(title));
    for (const side of ["left", "right"]) {
      const options = [new Option("Original", "original"), new Option("Original, pixels", "pixels")];
      for (const version of picture.versions) if (!version.error) options.push(new Option(named(version), version.id));
      for (const { value, title } of makes) options.push(new Option(`Make with ${title}`, `make:${value}`));
      const failed = picture.versions.find(({ id, error }) => error && id === this[side]);
      if (failed) options.push(new Option(`${named(failed)}, failed`, failed.id));
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
        if (version && image) {
          version.size = [image.width, image.height];
          this.sized(version);
        }
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

  /** What of a version is invented, drawn; null if that cannot be told. */
  mapOf(version) {
    const key = `${version.id} ${this.strength}`;
    if (!this.maps.has(key)) {
      const [width, height] = version.size;
      this.maps.set(key, this.map(version).then(async (told) => {
        // Below the map is a legend, which the page has beside it.
        return told && { image: await createImageBitmap(told.blob, 0, 0, width, height), invented: told.invented };
      }));
    }
    element("invented-text").textContent = "The service looks for it; it takes twice as long as the picture";
    return this.maps.get(key).then((told) => {
      const levels = told?.invented == null ? "" : `: ${told.invented.toFixed(1)} grey levels rms`;
      element("invented-text").textContent = told ? `Invented${levels}` : "It could not be told";
      if (!told) this.maps.delete(key);
      return told?.image;
    });
  }

  /** Play what moves, both sides in step. `files`: of the original, the left and the right side; `images`: their first. */
  async play(turn, files, images, base, largest, width, height) {
    const film = (file) => file && (this.films.get(file) ?? this.films.set(file, moving(file)).get(file));
    const films = await Promise.all(files.map(film));
    if (turn !== this.turn) return;
    element("play").hidden = !films.some(Boolean);
    for (let old = []; films.some(Boolean); this.frame++) {
      const shown = await Promise.all(films.map((moves) => moves?.frame(this.frame)));
      if (turn !== this.turn) return;
      const now = images.map((image, index) => shown[index]?.image ?? image);
      this.lay(now, shown[0]?.image ?? base, largest, width, height);
      if (!this.playing) return;
      const ms = Math.max(...shown.map((frame) => frame?.ms ?? 0));
      await new Promise((resolve) => setTimeout(resolve, ms));
      if (turn !== this.turn) return;
      old.forEach((frame) => frame?.image.close());
      old = shown;
    }
  }

  /** Before the whole is there: what is seen of it is asked for alone, once nobody moves it any more. */
  askForRegion() {
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.showRegion(), SETTLED_MS);
  }

  async showRegion() {
    const version = this.version(this.right), { patch } = this;
    const isWanted = this.offer.regions && this.picture?.width && version && !version.blob && !version.error && this.compare.left;
    if (!isWanted) return;
    const affordable = Math.min(Math.max(this.pxPerS * REGION_S, LEAST_REGION_PX), LARGEST_REGION_PX);
    const place = this.compare.middlePart(affordable || FIRST_REGION_PX); // not a number before anything is measured
    const [x, y, width, height] = place;
    const isThere = patch?.id === version.id && overlap(patch, place) > (width * height) / 2;
    const isAsked = this.asking?.id === version.id && this.asking.place === place.join();
    // What is nearly the whole comes as soon as that does.
    if (isThere || isAsked || 4 * width * height > this.compare.width * this.compare.height) return;
    this.asking?.abort();
    const { signal } = (this.asking = Object.assign(new AbortController(), { id: version.id, place: place.join() }));
    const since = performance.now();
    const blob = await this.region(version, place, signal);
    const image = blob && (await createImageBitmap(blob).catch(() => null));
    if (!image || signal.aborted || version.blob || version.id !== this.right) return;
    this.pxPerS = (1000 * width * height) / (performance.now() - since);
    this.patch = { id: version.id, image, x, y, width, height };
    this.refresh();
  }
}
