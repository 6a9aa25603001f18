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

/** The fragment, with its `#`. */
export function writeLink(place: Place): string {
  const parts = [`step=${place.step}`];
  if (place.room !== null) parts.push(`room=${place.room}`);
  if (place.compare) parts.push("compare=1");
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
  if (from !== null && take.length && take.every((item) => item !== null)) {
    place.from = from;
    place.take = take as number[];
  }
  return place;
}
