/**
 * What the page is given: `sim/explorer/page.py`, record by record and field by field, with the same names.
 * A test holds the two against each other. Lists and fields that have their default are absent in the JSON;
 * `read.ts` puts them back, so that nothing here is optional.
 */

export const PAGE_VERSION = 1;

export interface Lane {
  name: string;
  side: string;
  rank: number;
}

export interface Pool {
  rank: number;
  blocks: number;
  block_tokens: number;
}

export interface Request {
  room: number;
  tokens: number;
}

export interface Said {
  lane: string;
  room: number;
  text: string;
}

export interface Arrow {
  what: string;
  end: string;
  source: string;
  target: string;
  room: number;
  label: string;
  text: string;
}

export interface Block {
  rank: number;
  block: number;
  state: string;
  generation: number;
  room: number;
  seq: number;
  start: number;
  tokens: number;
  holds: string;
  through: [string, number][];
}

export interface Touch {
  rank: number;
  block: number;
  what: string;
  room: number;
  start: number;
  count: number;
  wrong: string;
  early: boolean;
}

export interface Progress {
  rank: number;
  room: number;
  epoch: string;
  granted: number;
  landed: number;
  watermark: number;
  delivered: number;
}

export interface Lifecycle {
  lane: string;
  rank: number;
  room: number;
  state: string;
  source: string;
  event: string;
  reason: string;
}

export interface Step {
  number: number;
  action: string;
  text: string;
  time_s: number;
  fault: boolean;
  skipped: boolean;
  extra: boolean;
  seen: string;
  said: Said[];
  arrows: Arrow[];
  blocks: Block[];
  touches: Touch[];
  progress: Progress[];
  lifecycles: Lifecycle[];
}

export interface Mark {
  kind: string;
  step: number;
  text: string;
  property: string;
  room: number;
}

export interface Run {
  name: string;
  origin: string;
  verdict: string;
  command: string;
  facts: [string, string][];
  lanes: Lane[];
  pools: Pool[];
  requests: Request[];
  steps: Step[];
  marks: Mark[];
  machine: string;
}

export interface Move {
  source: string;
  event: string;
  guard: string;
  target: string;
}

export interface Machine {
  name: string;
  initial: string;
  states: string[];
  terminal: string[];
  moves: Move[];
}

export interface Edge {
  source: number;
  target: number;
  choice: number;
  step: number;
  broken: string[];
  broken_text: string;
}

export interface Standstill {
  node: number;
  property: string;
  text: string;
}

export interface Graph {
  nodes: number;
  expanded: number;
  steps: Step[];
  edges: Edge[];
  choices: string[];
  path: number[];
  complete: boolean;
  depth: number;
  ends: number[];
  standstills: Standstill[];
}

export interface Page {
  version: number;
  title: string;
  runs: Run[];
  properties: Record<string, string>;
  machines: Machine[];
  graph: Graph | null;
}
