/** Adds up the changes of a run: what is so after a step. */

import type { Block, Lifecycle, Mark, Progress, Run, Step } from "./types.ts";

/** The state after a step. Keys are made by the functions below. */
export interface Snapshot {
  blocks: Map<string, Block>;
  progress: Map<string, Progress>;
  lifecycles: Map<string, Lifecycle>;
}

export const blockKey = (of: { rank: number; block: number }): string => `${of.rank}/${of.block}`;
export const progressKey = (of: { rank: number; room: number }): string => `${of.rank}/${of.room}`;
export const lifecycleKey = (of: { lane: string; rank: number; room: number }): string =>
  `${of.lane}/${of.rank}/${of.room}`;

/** Adds one step to a snapshot, in place. */
function add(to: Snapshot, step: Step): void {
  for (const block of step.blocks) to.blocks.set(blockKey(block), block);
  for (const progress of step.progress) to.progress.set(progressKey(progress), progress);
  for (const lifecycle of step.lifecycles) to.lifecycles.set(lifecycleKey(lifecycle), lifecycle);
}

/** What is so after step `number` (-1: before anything was). Steps stand in order, and step i is at place i. */
export function foldTo(run: Run, number: number): Snapshot {
  const snapshot: Snapshot = { blocks: new Map(), progress: new Map(), lifecycles: new Map() };
  const last = Math.min(number, run.steps.length - 1);
  for (let i = 0; i <= last; i++) add(snapshot, run.steps[i]!);
  return snapshot;
}

/** The first of the steps that repeat for ever, -1 if none do; they go on to the last step. */
export const cycleOf = (run: Run): number => run.marks.find((mark) => mark.kind === "cycle")?.step ?? -1;

/** The last step's number. */
export const lastStep = (run: Run): number => run.steps.length - 1;

/** The steps of the marks of a kind, in order, each once; of a room only if `room` is not null. */
export function markedSteps(run: Run, kind: string, room: number | null = null): number[] {
  const fits = (mark: Mark): boolean => mark.kind === kind && (room === null || mark.room < 0 || mark.room === room);
  return [...new Set(run.marks.filter(fits).map((mark) => mark.step))].sort((a, b) => a - b);
}

/** The first of `steps` after `from`; backwards: the last before it. Null where there is none. */
export function nextOf(steps: number[], from: number, backwards = false): number | null {
  if (backwards) return steps.filter((step) => step < from).at(-1) ?? null;
  return steps.find((step) => step > from) ?? null;
}

/** Whether a step has anything to do with a room. */
export function concerns(step: Step, room: number): boolean {
  const parts: { room: number }[][] = [step.said, step.arrows, step.blocks, step.touches, step.progress, step.lifecycles];
  return parts.some((list) => list.some((item) => item.room === room));
}
