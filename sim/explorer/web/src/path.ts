/** A reader's own path through the state graph: a run like any other. */

import type { Edge, Graph, Mark, Page, Run, Step } from "./types.ts";

/** Steps that a reader chose: the choices (indexes into `graph.choices`) taken after step `from` of the first run. */
export interface Path {
  from: number;
  take: number[];
}

/** An edge for each choice that is on offer at a node. */
export type Offers = Map<number, Edge>;

/** The edges of every node, made once. */
export function edgesByNode(graph: Graph): Edge[][] {
  const lists: Edge[][] = Array.from({ length: graph.nodes }, () => []);
  for (const edge of graph.edges) lists[edge.source]!.push(edge);
  return lists;
}

/** The edges of a path as far as the graph has them. */
export function follow(graph: Graph, lists: Edge[][], path: Path): Edge[] {
  const edges: Edge[] = [];
  let node = graph.path[path.from] ?? -1;
  for (const choice of path.take) {
    const edge = node < 0 ? undefined : lists[node]?.find((item) => item.choice === choice);
    if (!edge) break;
    edges.push(edge);
    node = edge.target;
  }
  return edges;
}

/** The nodes from which no path leads to a good end. Only a complete graph can tell. */
export function hopelessNodes(graph: Graph): Set<number> {
  if (!graph.complete) return new Set();
  const before: number[][] = Array.from({ length: graph.nodes }, () => []);
  for (const edge of graph.edges) if (edge.broken.length === 0) before[edge.target]!.push(edge.source);
  const well = new Set(graph.ends);
  for (const node of well) for (const source of before[node]!) well.add(source);
  return new Set(Array.from({ length: graph.nodes }, (_, node) => node).filter((node) => !well.has(node)));
}

/** The marks of a chosen step. */
function marksOf(step: Step, edge: Edge, page: Page): Mark[] {
  const marks: Mark[] = [];
  const mark = (kind: string, text: string, more: Partial<Mark> = {}): void => {
    marks.push({ kind, step: step.number, text, property: "", room: -1, ...more });
  };
  if (step.fault) mark("fault", step.text);
  for (const change of step.lifecycles)
    if (change.state === "ResumeRequested" && change.lane.startsWith("receiver"))
      mark("resume", `${change.lane} asks to resume room ${change.room}`, { room: change.room });
  for (const property of edge.broken)
    mark("violation", edge.broken_text || page.properties[property] || property, { property });
  return marks;
}

/** The mark of a node where all stands still and should not. */
function standing(graph: Graph, edge: Edge, step: number): Mark[] {
  return graph.standstills
    .filter((item) => item.node === edge.target)
    .map((item) => ({ kind: "violation", step, text: item.text, property: item.property, room: -1 }));
}

/** The first run up to `from`, and the chosen steps after it. */
export function ownRun(page: Page, graph: Graph, edges: Edge[], from: number): Run {
  const base = page.runs[0]!;
  const steps = base.steps.slice(0, from + 1);
  const marks = base.marks.filter((mark) => mark.step <= from && mark.kind !== "no-return" && mark.kind !== "violation");
  let time = steps.at(-1)?.time_s ?? 0;
  for (const edge of edges) {
    const raw = graph.steps[edge.step]!;
    time += raw.time_s;
    const step = { ...raw, number: steps.length, time_s: time };
    steps.push(step);
    marks.push(...marksOf(step, edge, page));
    if (edge.broken.length === 0) marks.push(...standing(graph, edge, step.number));
  }
  const verdict = marks.some((mark) => mark.kind === "violation") ? "violated" : "open";
  return { ...base, name: "your own path", origin: "own", verdict, command: "", facts: [], steps, marks };
}

/** What can happen at a node. `"unknown"`: the graph was not drawn that far. */
export interface Choices {
  node: number;
  known: boolean;
  ends: boolean;
  broken: string[];
  offers: Offers;
}

/** What can happen after the edges of a path (or after step `from` of the first run if there are none). */
export function choicesAt(graph: Graph, lists: Edge[][], from: number, edges: Edge[]): Choices {
  const edge = edges.at(-1);
  const node = edge ? edge.target : (graph.path[from] ?? -1);
  const broken = edge?.broken ?? [];
  const known = node >= 0 && node < graph.expanded && broken.length === 0;
  const offers: Offers = new Map(known ? lists[node]!.map((item) => [item.choice, item]) : []);
  const stuck = graph.standstills.filter((item) => item.node === node).map((item) => item.property);
  return { node, known, ends: graph.ends.includes(node), broken: [...broken, ...stuck], offers };
}

/** The choice that a run takes after a step, -1 if it is none of these. */
export function takenChoice(graph: Graph, run: Run, step: number, choices: Choices, next: number): number {
  const text = run.steps[step + 1]?.text;
  if (text === undefined) return -1;
  const here = [...choices.offers.values()];
  const same = here.filter((edge) => graph.steps[edge.step]!.text === text);
  const found = same.find((edge) => edge.target === next) ?? same[0] ?? here.find((edge) => edge.target === next);
  return found ? found.choice : -1;
}
