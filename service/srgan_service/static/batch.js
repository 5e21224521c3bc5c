// All that is to be made since there was nothing to do: how far it is, in a line, in the title, and told when it is done.

const TITLE = document.title;
const element = (id) => document.getElementById(id);

let versions = new Set(), since = 0, telling = false, finished = false;

export function left(seconds) {
  if (seconds === null) return "";
  if (seconds < 1) return "nearly done";
  return `about ${seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`} left`;
}

const isOver = ({ stage }) => stage === "done" || stage === "failed";
const weight = ({ picture }) => (picture.width ?? 1000) * (picture.height ?? 1000);

/** A version that is to be made. */
export function join(version) {
  if ([...versions].every(isOver)) [versions, since, finished] = [new Set(), performance.now(), false];
  versions.add(version);
}

export const leave = (version) => versions.delete(version);

/** Show how far it is; `fractionOf` a version, as far as it is known. */
export function show(fractionOf) {
  const all = [...versions], over = all.filter(isOver), failed = over.filter(({ stage }) => stage === "failed").length;
  const isWorking = over.length < all.length;
  const whole = all.reduce((sum, version) => sum + weight(version), 0);
  const part = all.reduce((sum, version) => sum + weight(version) * (isOver(version) ? 1 : fractionOf(version) ?? 0), 0) / whole;
  const passed = (performance.now() - since) / 1000;
  const time = part > 0.03 && passed > 2 ? left((passed * (1 - part)) / part) : "";
  const done = all.length - failed;
  const text = isWorking ? [`${over.length} of ${all.length} done`, time].filter(Boolean).join(", ")
    : [done && `${done} done`, failed && `${failed} failed`].filter(Boolean).join(", ");
  element("batch").hidden = !all.length;
  element("batch-bar").hidden = element("notify").hidden = !isWorking;
  element("notify").hidden ||= !("Notification" in window && isSecureContext);
  element("batch-bar").value = part || 0;
  if (element("batch-text").textContent !== text) element("batch-text").textContent = text;
  // What is done is in the title until somebody has seen it.
  const isNews = isWorking || (all.length && (document.hidden || !document.hasFocus()));
  document.title = isNews ? `${text} · SRGAN` : TITLE;
  if (all.length && !isWorking && !finished) {
    finished = true;
    if (telling && document.hidden) tell(text);
  }
}

function tell(text) {
  try {
    new Notification("Your pictures are ready", { body: text, icon: "static/icon.svg", tag: "srgan" });
  } catch {
    // Telephones want a service worker for it; the title says it all the same.
  }
}

/** Ask for notifications, or want none any more. Returns what to say of it. */
export async function toggle() {
  telling = !telling && (await Notification.requestPermission()) === "granted";
  element("notify").setAttribute("aria-pressed", telling);
  if (telling) return "You are told when all is done, if this page is not in front";
  return Notification.permission === "denied" ? "This browser does not let the page notify you; its settings can" : "You are not told when all is done";
}
