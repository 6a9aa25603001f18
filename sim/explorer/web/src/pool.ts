/** The block pool over time: what each block was from step to step, and how its memory was touched. */

import { blockKey } from "./fold.ts";
import type { Block, Run, Touch } from "./types.ts";

/** A block that stays as it is from step `first` to step `last`, both included. */
export interface Segment {
  first: number;
  last: number;
  block: Block;
}

/** A touch with its step. */
export interface TouchAt extends Touch {
  step: number;
}

/** One block's row. */
export interface PoolRow {
  rank: number;
  block: number;
  segments: Segment[];
  touches: TouchAt[];
  /** Steps in which the block was in other states before the one that it is in after them. */
  passed: { step: number; through: [string, number][] }[];
}

/** A touch that is wrong, and the write that it should have waited for: the first one later, -1 if there is none. */
export interface Finding extends TouchAt {
  written: number;
}

const free = (rank: number, block: number): Block => ({
  ...{ rank, block, state: "Free", generation: 0, room: -1, seq: -1, start: -1, tokens: 0, holds: "", through: [] },
});

function emptyRows(run: Run): Map<string, PoolRow> {
  const rows = new Map<string, PoolRow>();
  for (const pool of run.pools)
    for (let block = 0; block < pool.blocks; block++)
      rows.set(blockKey({ rank: pool.rank, block }), { rank: pool.rank, block, segments: [], touches: [], passed: [] });
  return rows;
}

function rowOf(rows: Map<string, PoolRow>, at: { rank: number; block: number }): PoolRow {
  const key = blockKey(at);
  const known = rows.get(key);
  if (known) return known;
  const row: PoolRow = { rank: at.rank, block: at.block, segments: [], touches: [], passed: [] };
  rows.set(key, row);
  return row;
}

function setBlock(row: PoolRow, step: number, block: Block): void {
  const before = row.segments.at(-1);
  if (before && before.first === step) before.block = block;
  else {
    if (before) before.last = step - 1;
    row.segments.push({ first: step, last: step, block });
  }
}

/** A row for each block of each rank, in order. */
export function poolRows(run: Run): PoolRow[] {
  const rows = emptyRows(run);
  const last = run.steps.length - 1;
  for (const step of run.steps) {
    for (const block of step.blocks) {
      const row = rowOf(rows, block);
      setBlock(row, step.number, block);
      if (block.through.length) row.passed.push({ step: step.number, through: block.through });
    }
    for (const touch of step.touches) rowOf(rows, touch).touches.push({ ...touch, step: step.number });
  }
  for (const row of rows.values()) {
    if (row.segments[0]?.first !== 0) {
      const until = (row.segments[0]?.first ?? last + 1) - 1;
      row.segments.unshift({ first: 0, last: until, block: free(row.rank, row.block) });
    }
    row.segments.at(-1)!.last = last;
  }
  return [...rows.values()].sort((a, b) => a.rank - b.rank || a.block - b.block);
}

/** The touches that are wrong or too early, in the order in which they happen. */
export function findings(rows: PoolRow[]): Finding[] {
  const bad = rows.flatMap((row) =>
    row.touches
      .filter((touch) => touch.early || touch.wrong)
      .map((touch) => ({
        ...touch,
        written: touch.early ? (row.touches.find((t) => t.what === "write" && t.step > touch.step)?.step ?? -1) : -1,
      })),
  );
  return bad.sort((a, b) => a.step - b.step);
}

/** The words that a wrong touch is shouted with. */
export function shout(touch: Touch): string {
  if (touch.early) return "READ BEFORE WRITTEN";
  return touch.what === "write" ? "WROTE WHERE IT MAY NOT" : "READ WHAT WAS NOT THERE";
}

/** Whether a row has anything to do with a room. */
export function rowConcerns(row: PoolRow, room: number): boolean {
  return row.segments.some((segment) => segment.block.room === room) || row.touches.some((touch) => touch.room === room);
}
