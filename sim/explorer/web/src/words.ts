/** What a step changed, in words. */

import { blockKey, lifecycleKey, progressKey, type Snapshot } from "./fold.ts";
import { groupBy } from "./group.ts";
import { shout } from "./pool.ts";
import type { Arrow, Block, Lifecycle, Progress, Step, Touch } from "./types.ts";

/** A sentence. `room` is -1 where it concerns none; `bad` asks for attention. */
export interface Sentence {
  head: string;
  body: string;
  /** All of a message, for those who want it. */
  more: string;
  room: number;
  bad: boolean;
}

/** A group of sentences under a title. */
export interface Section {
  title: string;
  sentences: Sentence[];
}

/** Tokens `start` to `start + count`, the end not included. */
export const tokens = (start: number, count: number): string => `[${start},${start + count})`;

/** A time that a reader takes in. */
export function timeWords(seconds: number): string {
  if (seconds === 0) return "0 s";
  if (Math.abs(seconds) < 1) return `${Number((seconds * 1000).toPrecision(4))} ms`;
  return `${Number(seconds.toFixed(3))} s`;
}

/** What a block is, without its number. */
export function blockWords(block: Block): string {
  const parts = [block.state];
  if (block.room >= 0) parts.push(`room ${block.room}`);
  if (block.seq >= 0) parts.push(`grant ${block.seq}`);
  if (block.start >= 0 && block.tokens > 0) parts.push(`tokens ${tokens(block.start, block.tokens)}`);
  parts.push(`generation ${block.generation}`);
  if (block.holds) parts.push(`holds ${block.holds}`);
  return parts.join(", ");
}

/** A touch, without its block. */
export function touchWords(touch: Touch): string {
  const what = touch.what === "write" ? "bytes land" : "copied out";
  const base = `${what}: room ${touch.room} ${tokens(touch.start, touch.count)}`;
  if (!touch.early && !touch.wrong) return base;
  return `${base}; ${touch.wrong || shout(touch)}`;
}

const ENDS: Record<string, string> = {
  leave: "leaves",
  copy: "is doubled by the network",
  hold: "is held back; others may overtake it",
  arrive: "arrives at",
  lose: "is lost",
};

function arrowWords(arrow: Arrow): string {
  const end = ENDS[arrow.end] ?? arrow.end;
  const way = arrow.end === "arrive" ? `${end} ${arrow.target}` : arrow.end === "leave" ? `${end} for ${arrow.target}` : end;
  return `${arrow.what === "bytes" ? "bytes " : ""}${arrow.label} ${way}`;
}

function lifecycleWords(change: Lifecycle): string {
  const from = change.source && change.source !== change.state ? `${change.source} → ` : "";
  const why = [change.event && `event ${change.event}`, change.reason].filter(Boolean).join("; ");
  return `room ${change.room}: ${from}${change.state}${why ? ` (${why})` : ""}`;
}

const NUMBERS = ["granted", "landed", "watermark", "delivered"] as const;

function progressWords(now: Progress, before: Progress | undefined): string {
  const fresh = !before || before.epoch !== now.epoch;
  const parts = NUMBERS.filter((name) => fresh || before[name] !== now[name]).map((name) => {
    const was = fresh ? "" : `${before[name]} → `;
    return `${name} ${was}${now[name]}`;
  });
  if (!before && parts.every((part) => part.endsWith(" 0"))) return `room ${now.room}: nothing yet (epoch ${now.epoch})`;
  const epoch = before && fresh ? ` (new attempt, epoch ${now.epoch})` : "";
  return `room ${now.room}: ${parts.join(", ") || "unchanged"}${epoch}`;
}

const sentence = (head: string, body: string, room: number, bad = false, more = ""): Sentence => ({
  ...{ head, body, more, room, bad },
});

/** "r0 b1" and "r0 b2" together are "r0 b1 b2"; what has no common beginning is joined by commas. */
function joinHeads(heads: string[]): string {
  const groups = new Map<string, string[]>();
  for (const head of new Set(heads)) {
    const [, start, end] = /^(r\d+) (b\d+)$/.exec(head) ?? [null, head, ""];
    groups.set(start!, [...(groups.get(start!) ?? []), end!]);
  }
  return [...groups].map(([start, ends]) => `${start} ${ends.join(" ")}`.trim()).join(", ");
}

/** Sentences that say the same of several become one. */
function merge(sentences: Sentence[]): Sentence[] {
  const groups = groupBy(sentences, (item) => JSON.stringify([item.body, item.more, item.room, item.bad]));
  return [...groups.values()].map((list) => ({ ...list[0]!, head: joinHeads(list.map((item) => item.head)) }));
}

/** The first and the last of what a step says of a room's progress at a rank, as one change. */
function progressSentences(step: Step, before: Snapshot): Sentence[] {
  const last = new Map(step.progress.map((now) => [progressKey(now), now]));
  return [...last.values()].map((now) => {
    const body = progressWords(now, before.progress.get(progressKey(now)));
    return sentence(`rank ${now.rank}`, body, now.room, now.watermark > now.landed || now.delivered > now.landed);
  });
}

function blockSentence(block: Block, before: Snapshot): Sentence {
  const was = before.blocks.get(blockKey(block));
  const states = [...(was ? [was.state] : []), ...block.through.map(([state]) => state)];
  const from = states.length > 1 || states[0] !== block.state ? states.map((state) => `${state} → `).join("") : "";
  const rooms = [block.room, was?.room ?? -1, ...block.through.map(([, owner]) => owner)];
  const room = rooms.find((owner) => owner >= 0) ?? -1;
  return sentence(`r${block.rank} b${block.block}`, from + blockWords(block), room);
}

/** All that `step` changed, given what was so before it. */
export function sectionsOf(step: Step, before: Snapshot): Section[] {
  const several = new Set([...before.lifecycles.values(), ...step.lifecycles].map((item) => item.rank)).size > 1;
  const sections: Section[] = [
    { title: "What they did", sentences: step.said.map((said) => sentence(said.lane, said.text, said.room, isBad(said.text))) },
    {
      title: "On the way",
      sentences: step.arrows.map((arrow) =>
        sentence(arrow.source, arrowWords(arrow), arrow.room, arrow.end === "lose", arrow.text),
      ),
    },
    {
      title: "Lifecycles",
      sentences: step.lifecycles.map((change) =>
        sentence(
          change.lane.startsWith("sender") && several ? `${change.lane} for rank ${change.rank}` : change.lane,
          lifecycleWords(change),
          change.room,
          change.state === "Failed" && before.lifecycles.get(lifecycleKey(change))?.state !== "Failed",
        ),
      ),
    },
    { title: "Progress", sentences: progressSentences(step, before) },
    {
      title: "Memory touched",
      sentences: step.touches.map((touch) =>
        sentence(`r${touch.rank} b${touch.block}`, touchWords(touch), touch.room, touch.early || touch.wrong !== ""),
      ),
    },
    { title: "Blocks", sentences: step.blocks.map((block) => blockSentence(block, before)) },
  ];
  return sections
    .filter((section) => section.sentences.length > 0)
    .map((section) => ({ title: section.title, sentences: merge(section.sentences) }));
}

/** What a mark says, in parts: what happened; then, of a refusal, what was before it and what could have been. */
export const partsOf = (text: string): string[] => text.split(/\. (?=Before it: |What could be: )/);

/** Whether what a process did is something to shout about. */
export const isBad = (text: string): boolean => /\b(WRONG|TRESPASS|ledger refuses)\b/.test(text);

/** One line for a step, such as a screen reader says. */
export function stepLine(step: Step, last: number): string {
  return `Step ${step.number} of ${last}${step.fault ? ", a fault" : ""}: ${stepWords(step)}`;
}

/** What a step is, in words; of one that was skipped, that it cannot be taken. */
export function stepWords(step: Step): string {
  const text = step.text || step.action || "the state before anything happened";
  if (!step.skipped || / has ended$/.test(text)) return text;
  return `cannot: ${text.replace(/: not possible here$/, "")}`;
}
