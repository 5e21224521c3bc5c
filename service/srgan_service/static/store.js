// Keeps pictures, results and the ids of jobs in this browser, so that a reload finds them again.
// Where that is forbidden (private windows), everything works but the reload.

const DAY_MS = 24 * 3600 * 1000; // as long as the service keeps jobs

const opened = new Promise((resolve) => {
  try {
    const opening = indexedDB.open("srgan", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("pictures", { keyPath: "id" });
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = opening.onblocked = () => resolve(null);
  } catch {
    resolve(null);
  }
});

async function ask(mode, what) {
  const database = await opened;
  if (!database) return undefined;
  return new Promise((resolve) => {
    const transaction = database.transaction("pictures", mode);
    const asked = what(transaction.objectStore("pictures"));
    transaction.oncomplete = () => resolve(asked.result);
    transaction.onabort = () => resolve(undefined);
  });
}

/** What is kept, the oldest first; what is older than a day is forgotten. */
export async function kept() {
  const records = (await ask("readonly", (store) => store.getAll())) ?? [];
  for (const { id, at } of records) if (at < Date.now() - DAY_MS) forget(id);
  return records.filter(({ at }) => at >= Date.now() - DAY_MS).sort((a, b) => a.at - b.at);
}

/** The record of a picture. */
export const one = (id) => ask("readonly", (store) => store.get(id));

/** Keep what `made` makes of a record, in one step over all tabs; null changes nothing. */
export const change = (id, made) => ask("readwrite", (store) => {
  const reading = store.get(id);
  reading.onsuccess = () => {
    const record = made(reading.result);
    if (record) store.put(record);
  };
  return reading;
});

export const forget = (id) => ask("readwrite", (store) => store.delete(id));
