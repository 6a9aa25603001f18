/** Where the rows of a sequence diagram and the lines in it stand. Pixels, from the top of the first row. */

import { spanOf, type Flight } from "./arrows.ts";
import { concerns, cycleOf } from "./fold.ts";
import type { Lane, Run, Step } from "./types.ts";
import { stepWords } from "./words.ts";
import { groupBy } from "./group.ts";
import { wrap, type Measure } from "./wrap.ts";

export const LINE = 16;
export const SLOT = 17;
const PAD = 6;
const SIGN = 14;
const FOLDED = 18;

/** What a process said, broken into lines. `badge`: its rank where its side has several, its room where there are several. */
export interface Saying {
  side: string;
  badge: string;
  /** The badge is told anew, and has a line of its own: there is no room for it beside the words. */
  above: boolean;
  room: number;
  lines: string[];
}

/** A row: `folded` ones show their number and title only. */
export interface Row {
  step: Step;
  top: number;
  height: number;
  folded: boolean;
  title: string[];
  sayings: Saying[];
  slots: number[];
}

/** The columns of a diagram. `lanes` has the x of each lane's line. */
export interface Columns {
  width: number;
  /** Narrow: smaller letters. */
  small: boolean;
  /** The title has a line of its own above the lanes' text. */
  stacked: boolean;
  title: { x: number; width: number };
  sender: { x: number; width: number };
  receiver: { x: number; width: number };
  network: { x: number; width: number };
  lanes: Map<string, number>;
}

const GUTTER = 52;
const BETWEEN = 22;
/** What is kept free beside a line. */
const GAP = 12;

/** Divides a width among the columns. */
export function columnsOf(width: number, lanes: Lane[]): Columns {
  const senders = lanes.filter((lane) => lane.side === "sender");
  const receivers = lanes.filter((lane) => lane.side !== "sender");
  const stacked = width < 760;
  const lines = BETWEEN * (Math.max(0, senders.length - 1) + Math.max(0, receivers.length - 1));
  const title = { x: GUTTER, width: stacked ? width - GUTTER - 8 : Math.min(190, width * 0.19) };
  const small = width < 520;
  const gap = small ? 8 : GAP;
  const left = small ? 4 : stacked ? 8 : GUTTER + title.width + 8;
  const rest = width - left - 8 - lines;
  const network = Math.max(108, Math.min(300, rest * (small ? 0.31 : 0.33)));
  const sender = Math.max(40, (rest - network) * (small ? 0.5 : 0.42));
  const receiver = Math.max(40, rest - network - sender);
  const at = new Map<string, number>();
  let x = left + sender;
  for (const [i, lane] of senders.entries()) at.set(lane.name, x + i * BETWEEN);
  x += BETWEEN * Math.max(0, senders.length - 1);
  const networkX = x;
  x += network;
  for (const [i, lane] of receivers.entries()) at.set(lane.name, x + i * BETWEEN);
  x += BETWEEN * Math.max(0, receivers.length - 1);
  return {
    ...{ width, small, stacked, lanes: at },
    // In a line of its own it stays beside the senders' line, unless that is too near.
    title: stacked && !small ? { x: GUTTER, width: Math.max(130, left + sender - GUTTER + 4) } : title,
    sender: { x: left, width: sender - gap },
    receiver: { x: x + gap, width: receiver - gap },
    network: { x: networkX, width: network },
  };
}

const badgeOf = (lane: Lane): string => (lane.side === "sender" ? "s" : "r") + lane.rank;

/** The sayings of a step, of a room only if `room` is not null. */
function sayingsOf(step: Step, run: Run, { columns, measure, room }: RowOptions): Saying[] {
  const { lanes } = run;
  const rooms = run.requests.length;
  const out: Saying[] = [];
  for (const said of step.said) {
    if (room !== null && said.room >= 0 && said.room !== room) continue;
    const lane = lanes.find((item) => item.name === said.lane);
    if (!lane) continue;
    const several = lanes.filter((item) => item.side === lane.side).length > 1;
    const badge = [several ? badgeOf(lane) : "", rooms > 1 && said.room >= 0 ? `#${said.room}` : ""].filter(Boolean).join(" ");
    const box = columns[lane.side === "sender" ? "sender" : "receiver"].width;
    const width = box - (badge && !columns.small ? measure(badge) + 10 : 0);
    const above = columns.small && badge !== "" && badge !== out.findLast((item) => item.side === lane.side)?.badge;
    out.push({ side: lane.side, badge, above, room: said.room, lines: wrap(said.text, Math.max(30, width), measure) });
  }
  return out;
}

/** The slot of each end of an arrow in a step, by its place in the list; -1 for what is not shown. */
export interface Slots {
  slots: number[];
  count: number;
}

/** Puts the ends of a step's arrows one below the other: on each side by itself, or all in one row of slots. */
export function slotsOf(step: Step, lanes: Lane[], room: number | null, together: boolean): Slots {
  const count = { sender: 0, receiver: 0, network: 0 };
  const slots = step.arrows.map((arrow) => {
    if (room !== null && arrow.room !== room) return -1;
    const side = together ? "network" : sideOfEnd(arrow.end, arrow, lanes);
    return count[side]++;
  });
  return { slots, count: Math.max(count.sender, count.receiver, count.network) };
}

/** The side of a diagram where an end of an arrow is drawn. */
export function sideOfEnd(
  end: string,
  arrow: { source: string; target: string },
  lanes: Lane[],
): "sender" | "receiver" | "network" {
  if (end !== "leave" && end !== "arrive") return "network";
  const name = end === "leave" ? arrow.source : arrow.target;
  return lanes.find((lane) => lane.name === name)?.side === "sender" ? "sender" : "receiver";
}

/** How many signs stand in the gutter at each step that has any. */
function signsAt(run: Run): Map<number, number> {
  const kinds = groupBy(run.marks, (mark) => mark.step);
  return new Map([...kinds].map(([step, marks]) => [step, new Set(marks.map((mark) => mark.kind)).size]));
}

export interface RowOptions {
  columns: Columns;
  measure: Measure;
  room: number | null;
  current: number;
}

/** The rows of a run, one below the other. */
export function rowsOf(run: Run, options: RowOptions): Row[] {
  const { columns, measure, room, current } = options;
  const kinds = signsAt(run);
  const cycle = cycleOf(run);
  const last = run.steps.length - 1;
  let top = 0;
  return run.steps.map((step) => {
    const folded = room !== null && step.number !== current && step.number !== 0 && !concerns(step, room);
    const text = stepWords(step) + (step.number === last && cycle >= 0 ? `, then step ${cycle} again` : "");
    const long = text + (step.extra ? " (only in this run)" : "");
    const all = folded ? [] : sayingsOf(step, run, options);
    // Of a worker's step the title says the same as the lane; where there is no room, one of them is enough.
    const [only] = step.said;
    const twice = columns.stacked && all.length === 1 && only !== undefined && step.text === `${only.lane}: ${only.text}`;
    const title = folded ? [text] : twice && all[0]!.side !== "sender" ? [] : wrap(long, columns.title.width - 8, measure);
    const sayings = twice && all[0]!.side === "sender" ? [] : all;
    if (twice && !sayings.length && all[0]!.badge) title[title.length - 1] += ` ${all[0]!.badge}`;
    const linesOn = (side: string): number =>
      sayings
        .filter((item) => (item.side === "sender") === (side === "sender"))
        .reduce((n, item) => n + item.lines.length + Number(item.above), 0);
    const ends = slotsOf(step, run.lanes, room, columns.stacked);
    const said = Math.max(linesOn("sender"), linesOn("receiver")) * LINE;
    const body = Math.max(said, ends.count * SLOT + (ends.count ? 4 + below(columns, title.length) : 0));
    const titled = Math.max(title.length * LINE, columns.stacked ? 0 : (kinds.get(step.number) ?? 0) * SIGN);
    const height = folded ? FOLDED : PAD * 2 + (columns.stacked ? Math.max(titled + body, (kinds.get(step.number) ?? 0) * SIGN) : Math.max(titled, body));
    const row = { step, top, height, folded, title, sayings, slots: ends.slots };
    top += height;
    return row;
  });
}

/** Makes the rows of two runs equally high, so that equal numbers stand side by side; `total` is that of the longer. */
export function alignRows(rows: Row[], other: Row[]): { rows: Row[]; total: number } {
  let top = 0;
  const aligned: Row[] = [];
  for (let i = 0; i < Math.max(rows.length, other.length); i++) {
    const height = Math.max(rows[i]?.height ?? 0, other[i]?.height ?? 0);
    if (rows[i]) aligned.push({ ...rows[i]!, top, height });
    top += height;
  }
  return { rows: aligned, total: top };
}

/** Where the lanes' text of a row begins, from the row's top. */
export const textTop = (row: Row, columns: Columns): number => PAD + (columns.stacked ? row.title.length * LINE : 0);

/** Under a title that has a line of its own, labels of arrows stand a little lower. */
const below = (columns: Columns, lines: number): number => (columns.stacked && lines ? 5 : 0);

/** The y of an end of an arrow, by its place in the step's list. */
export function endY(row: Row, columns: Columns, place: number): number {
  if (row.folded) return row.top + row.height / 2;
  return row.top + textTop(row, columns) + below(columns, row.title.length) + 10 + Math.max(0, row.slots[place] ?? 0) * SLOT;
}

/** The index of the row at a height. */
export function rowAt(rows: Row[], y: number): number {
  let low = 0;
  let high = rows.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (rows[middle]!.top <= y) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** Whether a flight goes straight from lane to lane, into the next row at the latest. */
export function isDirect(flight: Flight): boolean {
  const plain = !flight.copy && flight.held < 0 && flight.left >= 0 && flight.arrived >= 0;
  return plain && flight.arrived - flight.left <= 1;
}

/** A track in the network for each flight that stays there: flights at the same time never share one. */
export function tracksOf(flights: Flight[], last: number): Map<Flight, number> {
  const tracks = new Map<Flight, number>();
  const busyUntil: number[] = [];
  const stay = flights.filter((flight) => !isDirect(flight));
  const staying = stay.map((flight) => ({ flight, span: spanOf(flight, last) }));
  staying.sort((a, b) => a.span[0] - b.span[0]);
  for (const { flight, span } of staying) {
    let track = busyUntil.findIndex((until) => until <= span[0]);
    if (track < 0) track = busyUntil.length;
    busyUntil[track] = span[1];
    tracks.set(flight, track);
  }
  return tracks;
}
