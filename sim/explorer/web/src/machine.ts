/** Lays out a lifecycle's diagram. */

import { Graph, layout } from "@dagrejs/dagre";
import type { Machine } from "./types.ts";
import type { Measure } from "./wrap.ts";

export interface StateBox {
  name: string;
  x: number;
  y: number;
  width: number;
  height: number;
  terminal: boolean;
  initial: boolean;
}

/** All moves from one state to another, as one line. */
export interface MoveLine {
  source: string;
  target: string;
  events: string[];
  points: { x: number; y: number }[];
  /** It leads back to where it comes from. */
  loop: boolean;
  label: { x: number; y: number; text: string };
}

export interface Drawing {
  width: number;
  height: number;
  boxes: StateBox[];
  lines: MoveLine[];
}

/** The events from one state to another, each once, in the table's order. */
function eventsOf(machine: Machine): Map<string, string[]> {
  const out = new Map<string, string[]>();
  for (const move of machine.moves) {
    const key = JSON.stringify([move.source, move.target]);
    const events = out.get(key) ?? [];
    if (!events.includes(move.event)) events.push(move.event);
    out.set(key, events);
  }
  return out;
}

/** The points of a loop at the right edge of a box. */
const loopOf = (x: number, y: number): { x: number; y: number }[] => [
  { x: x - 4, y: y - 8 },
  { x: x + 28, y: y - 14 },
  { x: x + 28, y: y + 14 },
  { x: x - 3, y: y + 8 },
];

/** The drawing of a lifecycle, from top to bottom. */
export function drawMachine(machine: Machine, measure: Measure): Drawing {
  const graph = new Graph({ multigraph: false });
  graph.setGraph({ rankdir: "TB", nodesep: 26, ranksep: 30, edgesep: 14, marginx: 8, marginy: 8 });
  graph.setDefaultEdgeLabel(() => ({}));
  for (const state of machine.states) graph.setNode(state, { width: measure(state) * 1.15 + 26, height: 28 });
  const events = eventsOf(machine);
  for (const [key, names] of events) {
    const [source, target] = JSON.parse(key) as [string, string];
    const text = names.join(" / ");
    graph.setEdge(source, target, { text, names, width: measure(text) + 6, height: 14, labelpos: "c" });
  }
  layout(graph);
  const boxes = machine.states.map((name) => ({
    ...(graph.node(name) as { x: number; y: number; width: number; height: number }),
    name,
    terminal: machine.terminal.includes(name),
    initial: machine.initial === name,
  }));
  const lines = graph.edges().map((edge) => {
    const at = graph.edge(edge) as { points: { x: number; y: number }[]; x: number; y: number; text: string; names: string[] };
    const loop = edge.v === edge.w;
    const box = graph.node(edge.v) as { x: number; y: number; width: number };
    const right = box.x + box.width / 2;
    // A loop hangs at the right of its box; the layout has left room for its words there.
    const place = loop ? { x: right + 24 + measure(at.text) / 2, y: box.y } : { x: at.x, y: at.y };
    const points = loop ? loopOf(right, box.y) : at.points;
    return { source: edge.v, target: edge.w, events: at.names, points, loop, label: { ...place, text: at.text } };
  });
  const size = graph.graph() as { width?: number; height?: number };
  const right = lines.filter((line) => line.loop).map((line) => line.label.x + measure(line.label.text) / 2 + 6);
  return { width: Math.max(size.width ?? 0, ...right), height: size.height ?? 0, boxes, lines };
}
