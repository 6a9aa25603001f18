/** The watermark curve: how far each room has come at each receiver rank, step by step. */

import { progressKey } from "./fold.ts";
import type { Progress, Run } from "./types.ts";

/** Progress that holds from step `step` on. */
export interface Point extends Progress {
  step: number;
}

/** One curve: a room at a rank. `tokens` is the room's length, -1 where nobody saw it. */
export interface Series {
  rank: number;
  room: number;
  tokens: number;
  points: Point[];
}

/** The curves of a run, by room and then by rank. */
export function seriesOf(run: Run): Series[] {
  const series = new Map<string, Series>();
  const lengths = new Map(run.requests.map((request) => [request.room, request.tokens]));
  for (const step of run.steps)
    for (const progress of step.progress) {
      const key = progressKey(progress);
      const one = series.get(key) ?? { rank: progress.rank, room: progress.room, tokens: -1, points: [] };
      one.tokens = lengths.get(progress.room) ?? -1;
      if (one.points.at(-1)?.step === step.number) one.points.pop();
      one.points.push({ ...progress, step: step.number });
      series.set(key, one);
    }
  return [...series.values()].sort((a, b) => a.room - b.room || a.rank - b.rank);
}

/** The highest number in a curve. */
export function heightOf(series: Series): number {
  const numbers = series.points.flatMap((point) => [point.granted, point.landed, point.watermark, point.delivered]);
  return Math.max(1, series.tokens, ...numbers);
}

/** What holds after a step, or null before the first point. */
export function pointAt(series: Series, step: number): Point | null {
  return series.points.findLast((point) => point.step <= step) ?? null;
}

/** A stretch of steps, both ends included. */
export interface Stretch {
  first: number;
  last: number;
}

/** Where the watermark is ahead of what has landed. */
export function aheadOf(series: Series, last: number): Stretch[] {
  const out: Stretch[] = [];
  series.points.forEach((point, i) => {
    if (point.watermark <= point.landed) return;
    const until = (series.points[i + 1]?.step ?? last + 1) - 1;
    const before = out.at(-1);
    if (before && before.last === point.step - 1) before.last = until;
    else out.push({ first: point.step, last: until });
  });
  return out;
}
