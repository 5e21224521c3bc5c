// Two pictures of the same thing on one canvas, to be compared: a divider or side by side, one zoom for both.

const GRIP_PX = 24; // how near to the divider a drag moves it and not the picture

/**
 * A side is {image, base, strength, hard, patch, overlay}: `strength` of `image` and the rest of `base`; `hard` shows its
 * pixels; a `patch`, {image, x, y, width, height}, lies on it; an `overlay` of bright on black dims it. Without a right
 * side the left has all the room. The frame is the larger side's size, `zoom` device pixels per pixel of it, `x` and `y`
 * what lies in the middle; `placed(percent)` is told when they change.
 */
export class Compare {
  constructor(stage, canvas, handle, checker, placed) {
    Object.assign(this, { stage, canvas, handle, checker, placed });
    this.context = canvas.getContext("2d");
    this.left = this.right = null;
    this.split = 0.5;
    this.beside = false;
    this.fitted = true;
    this.pointers = new Map();
    new ResizeObserver(() => this.resize()).observe(stage);
    stage.addEventListener("pointerdown", (event) => this.down(event));
    stage.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) {
      stage.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
    stage.addEventListener("dblclick", (event) => (this.fitted ? this.actual(...this.at(event)) : this.fit()));
    stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    stage.addEventListener("keydown", (event) => this.key(event));
  }

  /** Show two sides in a frame of that size; zoom and place stay as they are while the frame does. */
  show(left, right, width, height) {
    const same = this.width === width && this.height === height;
    Object.assign(this, { left, right, width, height });
    this.handle.hidden = !this.isDivided;
    if (same && !this.fitted) this.place(this.zoom, this.x, this.y);
    else this.fit();
  }

  get isDivided() {
    return Boolean(this.right) && !this.beside;
  }

  /** The middle of what is seen, [x, y, width, height] in pixels of the frame, of so many pixels at most. */
  middlePart(px) {
    const seen = [[this.x, this.width, this.paneWidth], [this.y, this.height, this.canvas.height]]
      .map(([at, size, pane]) => [Math.max(0, at - pane / this.zoom / 2), Math.min(size, at + pane / this.zoom / 2)]);
    const [width, height] = seen.map(([start, stop]) => stop - start);
    const less = Math.min(1, Math.sqrt(px / (width * height)));
    const [[left, wide], [top, high]] = seen.map(([start, stop]) => {
      const length = Math.max(1, Math.floor((stop - start) * less));
      return [Math.floor((start + stop - length) / 2), length];
    });
    return [left, top, wide, high];
  }

  resize() {
    this.ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.stage.clientWidth * this.ratio);
    this.canvas.height = Math.round(this.stage.clientHeight * this.ratio);
    if (this.fitted) this.fit();
    else this.place(this.zoom, this.x, this.y);
  }

  setBeside(beside) {
    this.beside = beside;
    this.handle.hidden = !this.isDivided;
    this.resize();
  }

  // Zoom and place

  get paneWidth() {
    return this.beside && this.right ? this.canvas.width / 2 : this.canvas.width;
  }

  get fitZoom() {
    return Math.min(this.paneWidth / this.width, this.canvas.height / this.height);
  }

  fit() {
    if (this.width) this.place(this.fitZoom, this.width / 2, this.height / 2);
  }

  actual(x, y) {
    this.zoomBy(1 / this.zoom, x, y);
  }

  /** Zoom so that what lies under (x, y), in canvas pixels, stays there. */
  zoomBy(factor, x = this.paneWidth / 2, y = this.canvas.height / 2) {
    const zoom = Math.min(Math.max(this.zoom * factor, this.fitZoom), Math.max(16, this.fitZoom));
    const dx = (x % this.paneWidth) - this.paneWidth / 2, dy = y - this.canvas.height / 2;
    this.place(zoom, this.x + dx / this.zoom - dx / zoom, this.y + dy / this.zoom - dy / zoom);
  }

  panBy(dx, dy) {
    this.place(this.zoom, this.x - dx / this.zoom, this.y - dy / this.zoom);
  }

  place(zoom, x, y) {
    const within = (at, size, seen) => (seen >= size ? size / 2 : Math.min(Math.max(at, seen / 2), size - seen / 2));
    this.zoom = Math.max(zoom, this.fitZoom);
    this.fitted = this.zoom <= this.fitZoom * 1.001;
    this.x = within(x, this.width, this.paneWidth / this.zoom);
    this.y = within(y, this.height, this.canvas.height / this.zoom);
    this.stage.classList.toggle("zoomed", !this.fitted);
    this.placed(Math.round(100 * this.zoom));
    this.draw();
  }

  // Drawing

  draw() {
    this.drawing ??= requestAnimationFrame(() => {
      this.drawing = null;
      if (this.left && this.canvas.width) this.paint();
    });
  }

  paint() {
    const { canvas, context, paneWidth, zoom } = this;
    const left = paneWidth / 2 - this.x * zoom, top = canvas.height / 2 - this.y * zoom;
    const width = this.width * zoom, height = this.height * zoom;
    context.clearRect(0, 0, canvas.width, canvas.height);
    this.seen = [Math.max(0, left), Math.min(paneWidth, left + width)];
    const middle = this.isDivided ? Math.round(this.seen[0] + this.split * (this.seen[1] - this.seen[0])) : paneWidth;
    this.half(this.left, 0, middle, [left, top, width, height]);
    if (this.right) this.half(this.right, middle, canvas.width, [left + (this.beside ? paneWidth : 0), top, width, height]);
    this.middle = middle;
    const style = (element, values) => {
      for (const [name, value] of Object.entries(values)) element.style[name] = `${value / this.ratio}px`;
    };
    style(this.handle, { left: middle });
    style(this.checker, { left: this.seen[0], top: Math.max(0, top), width: this.beside && this.right ? 0 : this.seen[1] - this.seen[0],
      height: Math.min(canvas.height, height) });
    this.handle.setAttribute("aria-valuenow", Math.round(this.split * 100));
  }

  half({ image, base, strength, hard, patch, overlay }, start, stop, place) {
    const { context } = this;
    context.save();
    context.beginPath();
    context.rect(start, 0, stop - start, this.canvas.height);
    context.clip();
    context.imageSmoothingQuality = "high";
    blend(context, image, base, strength, (picture) => {
      // From twice its size on, a pixel is shown as one, unless it only stands in for an enlargement.
      context.imageSmoothingEnabled = !hard && (picture.width < this.width || place[2] < 2 * picture.width);
      context.drawImage(picture, ...place);
    });
    [context.globalAlpha, context.globalCompositeOperation] = [1, "source-over"];
    if (overlay) {
      context.fillStyle = "#000b";
      context.fillRect(...place);
      context.globalCompositeOperation = "lighter";
      context.drawImage(overlay, ...place);
    }
    if (patch) this.lay(patch, place);
    context.restore();
  }

  /** Draw a part of the frame that is there before the rest, with an edge. */
  lay({ image, x, y, width, height }, [left, top]) {
    const { context, zoom } = this, box = [left + x * zoom, top + y * zoom, width * zoom, height * zoom];
    context.imageSmoothingEnabled = zoom < 2;
    context.drawImage(image, ...box);
    context.lineWidth = this.ratio;
    context.strokeStyle = "#fff";
    context.strokeRect(...box);
  }

  // Hands

  at(event) {
    const box = this.stage.getBoundingClientRect();
    return [(event.clientX - box.left) * this.ratio, (event.clientY - box.top) * this.ratio];
  }

  down(event) {
    if (event.button || !this.left) return;
    const [x, y] = this.at(event);
    this.pointers.set(event.pointerId, [x, y]);
    this.stage.setPointerCapture(event.pointerId);
    this.gripping = this.isDivided && (this.fitted || Math.abs(x - this.middle) < GRIP_PX * this.ratio);
    if (this.gripping) this.divide(x);
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = this.at(event);
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    this.pointers.set(event.pointerId, now);
    if (other) {
      const apart = ([x, y]) => Math.hypot(x - other[0], y - other[1]) || 1;
      this.zoomBy(apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    } else if (this.gripping) this.divide(now[0]);
    else this.panBy(now[0] - before[0], now[1] - before[1]);
  }

  /** Put the divider at x, in canvas pixels. */
  divide(x) {
    this.setSplit((x - this.seen[0]) / (this.seen[1] - this.seen[0]));
  }

  setSplit(split) {
    this.split = Math.min(Math.max(split, 0), 1);
    this.draw();
  }

  wheel(event) {
    // The page scrolls as ever until somebody turns to the picture.
    if (!this.left || !(event.ctrlKey || event.metaKey || this.stage.contains(document.activeElement))) return;
    event.preventDefault();
    this.zoomBy(Math.exp(-event.deltaY / (event.ctrlKey ? 100 : 400)), ...this.at(event));
  }

  key(event) {
    if (!this.left || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = event.shiftKey ? 10 : 2, far = 48 * this.ratio;
    const divider = {
      ArrowLeft: () => this.setSplit(this.split - step / 100), ArrowRight: () => this.setSplit(this.split + step / 100),
      PageDown: () => this.setSplit(this.split - 0.1), PageUp: () => this.setSplit(this.split + 0.1),
      Home: () => this.setSplit(0), End: () => this.setSplit(1),
    };
    divider.ArrowDown = divider.ArrowLeft;
    divider.ArrowUp = divider.ArrowRight;
    const picture = {
      ArrowLeft: () => this.panBy(far, 0), ArrowRight: () => this.panBy(-far, 0),
      ArrowUp: () => this.panBy(0, far), ArrowDown: () => this.panBy(0, -far),
      "+": () => this.zoomBy(1.5), "=": () => this.zoomBy(1.5), "-": () => this.zoomBy(1 / 1.5),
      0: () => this.fit(), 1: () => this.actual(),
    };
    const act = (event.target === this.handle && divider[event.key]) || picture[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
}

/** Draw `strength` of `image` and the rest of `base`: a sum of premultiplied colours, so opacity blends rightly. */
function blend(context, image, base, strength, draw) {
  if (strength < 1 && base) {
    context.globalAlpha = 1 - strength;
    draw(base);
    context.globalCompositeOperation = "lighter";
    context.globalAlpha = strength;
  }
  draw(image);
}
