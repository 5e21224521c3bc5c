// What is said for a moment, with a way back where there is one; and a place for the focus when its own is gone.

const MESSAGE_MS = 8000; // long enough to read; what stays true is in the list as well
const UNDO_MS = 20_000; // and to change one's mind
const element = (id) => document.getElementById(id);

let saying = null, focused = null;

/** Say something. `undo`: what a button beside it does; that stays for its time, whatever else there is to say. */
export function say(text, undo = null) {
  if (!undo && !element("undo").hidden) return;
  element("said").textContent = text;
  element("undo").hidden = !undo;
  element("undo").onclick = () => {
    hush();
    undo();
  };
  clearTimeout(saying);
  saying = setTimeout(hush, undo ? UNDO_MS : MESSAGE_MS);
}

function hush() {
  element("said").textContent = "";
  element("undo").hidden = true;
  keepFocus();
}

/** Whether something can have the focus. */
const isThere = (candidate) => candidate?.isConnected && !candidate.disabled && candidate.getClientRects().length > 0;

addEventListener("focusin", (event) => (focused = event.target));

/** Move the focus on if what had it is gone: to the way back, the picture shown, or where pictures are chosen. */
export function keepFocus() {
  const isLost = !document.activeElement || document.activeElement === document.body || !isThere(document.activeElement);
  if (!isLost || !focused || isThere(focused)) return;
  const places = [element("undo"), document.querySelector("#list [aria-current]"), element("files")];
  places.find(isThere)?.focus();
}
