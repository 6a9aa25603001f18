/** All that is worked out of a run once, whatever step is shown. */

import { flightsOf, type Flight } from "./arrows.ts";
import { groupBy } from "./group.ts";
import { findings, poolRows, shout, type Finding, type PoolRow } from "./pool.ts";
import { tracksOf } from "./rows.ts";
import { seriesOf, type Series } from "./series.ts";
import type { Run } from "./types.ts";
import { tokens } from "./words.ts";

export interface Model {
  run: Run;
  last: number;
  rooms: number[];
  flights: Flight[];
  tracks: Map<Flight, number>;
  rows: PoolRow[];
  findings: Finding[];
  series: Series[];
}

const known = new WeakMap<Run, Model>();

/** The model of a run, made once. */
export function modelOf(run: Run): Model {
  const before = known.get(run);
  if (before) return before;
  const last = run.steps.length - 1;
  const flights = flightsOf(run);
  const rows = poolRows(run);
  const model: Model = {
    ...{ run, last, flights, rows },
    rooms: run.requests.map((request) => request.room).sort((a, b) => a - b),
    tracks: tracksOf(flights, last),
    findings: findings(rows),
    series: seriesOf(run),
  };
  known.set(run, model);
  return model;
}

/** The class that gives a room its colour; there are six. */
export function roomClass(rooms: number[], room: number): string {
  const index = rooms.indexOf(room);
  return room < 0 ? "room-none" : `room-${(index < 0 ? room : index) % 6}`;
}

/** Wrong touches of one step and kind, in one sentence. */
export interface Alarm {
  step: number;
  title: string;
  text: string;
}

/** The tokens of some touches; what follows upon each other is one stretch. */
function stretches(list: Finding[]): string[] {
  const spans: [number, number][] = [];
  for (const item of list) {
    const before = spans.at(-1);
    if (before && before[1] === item.start) before[1] += item.count;
    else spans.push([item.start, item.start + item.count]);
  }
  return spans.map(([start, end]) => tokens(start, end - start));
}

function alarmText(list: Finding[]): string {
  const first = list[0]!;
  const blocks = list.map((item) => `b${item.block}`).join(" ");
  const where = `room ${first.room} ${stretches(list).join(" ")}`;
  const verb = first.what === "read" ? `${blocks} copied out for ${where}` : `bytes of ${where} land in ${blocks}`;
  const rank = `rank ${first.rank}: ${verb}`;
  if (!first.early) return `${rank}: ${first.wrong}`;
  const later = list.filter((item) => item.written >= 0).map((item) => `b${item.block} in step ${item.written}`);
  return `${rank}. ${later.length ? `Written only later: ${later.join(", ")}.` : "Nothing is ever written there."}`;
}

/** What is wrong with memory in a run, a sentence for each step, rank, room and kind. */
export function alarmsOf(model: Model): Alarm[] {
  const groups = groupBy(model.findings, (item) => [item.step, item.rank, item.room, shout(item)].join("/"));
  return [...groups.values()].map((list) => ({ step: list[0]!.step, title: shout(list[0]!), text: alarmText(list) }));
}
