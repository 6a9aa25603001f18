/** Reads the page's data and puts back what JSON leaves out because it has its default. */

import {
  PAGE_VERSION,
  type Block,
  type Edge,
  type Graph,
  type Lifecycle,
  type Mark,
  type Page,
  type Progress,
  type Run,
  type Step,
  type Touch,
} from "./types.ts";

const BLOCK = { room: -1, seq: -1, start: -1, tokens: 0, holds: "", through: [] as [string, number][] };
const TOUCH = { wrong: "", early: false };
const PROGRESS = { granted: 0, landed: 0, watermark: 0, delivered: 0 };
const LIFECYCLE = { source: "", event: "", reason: "" };
const STEP = { action: "", text: "", time_s: 0, fault: false, skipped: false, extra: false, seen: "" };
const RUN = { machine: "receiver" };
const MARK = { property: "", room: -1 };
const EDGE = { broken: [] as string[], broken_text: "" };

type Loose<T> = Partial<T>;

function all<T>(list: Loose<T>[] | undefined, defaults: Loose<T>): T[] {
  return (list ?? []).map((item) => ({ ...defaults, ...item }) as T);
}

function step(raw: Loose<Step>): Step {
  return {
    ...STEP,
    number: 0,
    ...raw,
    said: raw.said ?? [],
    arrows: raw.arrows ?? [],
    blocks: all<Block>(raw.blocks, BLOCK),
    touches: all<Touch>(raw.touches, TOUCH),
    progress: all<Progress>(raw.progress, PROGRESS),
    lifecycles: all<Lifecycle>(raw.lifecycles, LIFECYCLE),
  };
}

function run(raw: Run): Run {
  return { ...RUN, ...raw, steps: raw.steps.map(step), marks: all<Mark>(raw.marks, MARK) };
}

function graph(raw: Graph | null | undefined): Graph | null {
  if (!raw) return null;
  return {
    ...raw,
    steps: raw.steps.map(step),
    edges: all<Edge>(raw.edges, EDGE),
    ends: raw.ends ?? [],
    standstills: raw.standstills ?? [],
  };
}

/** The page that `text` holds. Throws an error whose message a reader can act on. */
export function readPage(text: string): Page {
  let raw: Page;
  try {
    raw = JSON.parse(text) as Page;
  } catch (error) {
    throw new Error(`The data in this file is damaged (${String(error)}). Make the page again with "resumark explore".`);
  }
  if (raw.version !== PAGE_VERSION)
    throw new Error(
      `The data in this file has version ${String(raw.version)}, and its script reads version ${PAGE_VERSION}. ` +
        `Make the page again with one and the same version of "resumark explore".`,
    );
  if (!raw.runs?.length) throw new Error(`The data in this file holds no run. Make the page again with "resumark explore".`);
  return { ...raw, runs: raw.runs.map(run), graph: graph(raw.graph) };
}
