/** The place that a reader is at, as the fragment of an address: `#step=7&room=1&from=5&take=3.0.2`. */

/** What a link keeps. */
export interface Place {
  step: number;
  room: number | null;
  compare: boolean;
  from: number;
  take: number[];
}

const whole = (text: string | null): number | null => (text !== null && /^\d{1,9}$/.test(text) ? Number(text) : null);

/** The fragment, with its `#`. `comparable`: there are two runs, so that it says whether both are shown. */
export function writeLink(place: Place, comparable: boolean): string {
  const parts = [`step=${place.step}`];
  if (place.room !== null) parts.push(`room=${place.room}`);
  if (comparable) parts.push(`compare=${place.compare ? 1 : 0}`);
  if (place.take.length) parts.push(`from=${place.from}`, `take=${place.take.join(".")}`);
  return "#" + parts.join("&");
}

/** What a fragment says; what it does not say, or says wrongly, is left out. */
export function readLink(fragment: string): Partial<Place> {
  const fields = new URLSearchParams(fragment.replace(/^#/, ""));
  const place: Partial<Place> = {};
  const step = whole(fields.get("step"));
  const room = whole(fields.get("room"));
  const from = whole(fields.get("from"));
  const take = (fields.get("take") ?? "").split(".").map(whole);
  if (step !== null) place.step = step;
  if (room !== null) place.room = room;
  if (fields.has("compare")) place.compare = fields.get("compare") === "1";
  if (take.length && take.every((item) => item !== null)) {
    place.from = from ?? 0;
    place.take = take as number[];
  }
  return place;
}
