/** The states around the present one, laid out: where it came from, what may follow, and what may follow that. */

import { Graph as Layout, layout } from "@dagrejs/dagre";
import type { Edge, Graph } from "./types.ts";

/** States two steps away are drawn if there are no more than so many in all. */
const NODES_MAX = 14;

export interface Dot {
  node: number;
  x: number;
  y: number;
  /** How far from the present state; -1 for the one before it. */
  depth: number;
}

export interface Link {
  edge: Edge;
  points: { x: number; y: number }[];
}

export interface Nearby {
  width: number;
  height: number;
  dots: Dot[];
  links: Link[];
}

/** The edges from a node, one for each target, in the order in which they are offered. */
function targets(lists: Edge[][], graph: Graph, node: number): Edge[] {
  const known = node < graph.expanded ? (lists[node] ?? []) : [];
  return known.filter((edge, i) => edge.target !== node && known.findIndex((other) => other.target === edge.target) === i);
}

/** Adds the states that are one step further than `far - 1`, unless there are too many; whether it did. */
function grow(graph: Graph, lists: Edge[][], depth: Map<number, number>, edges: Edge[], far: number): boolean {
  const sources = [...depth].filter(([, at]) => at === far - 1).map(([node]) => node);
  const found = sources.flatMap((source) => targets(lists, graph, source));
  const fresh = new Set(found.map((edge) => edge.target).filter((node) => !depth.has(node)));
  if (far > 1 && depth.size + fresh.size > NODES_MAX) return false;
  for (const node of fresh) depth.set(node, far);
  edges.push(...found);
  return true;
}

/** The states around `node`, which was reached by `from` (null at the start): one step further, two where few are. */
export function nearbyOf(graph: Graph, lists: Edge[][], node: number, from: Edge | null): Nearby {
  const depth = new Map<number, number>([[node, 0]]);
  const edges: Edge[] = [];
  if (from && from.source !== node) {
    depth.set(from.source, -1);
    edges.push(from);
  }
  for (let far = 1; far <= 2 && grow(graph, lists, depth, edges, far); far++);
  return laidOut(depth, edges);
}

function laidOut(depth: Map<number, number>, edges: Edge[]): Nearby {
  const drawing = new Layout();
  drawing.setGraph({ rankdir: "LR", nodesep: 9, ranksep: 46, edgesep: 6, marginx: 10, marginy: 10 });
  drawing.setDefaultEdgeLabel(() => ({}));
  for (const node of depth.keys()) drawing.setNode(String(node), { width: 22, height: 22 });
  for (const edge of edges) drawing.setEdge(String(edge.source), String(edge.target), {});
  layout(drawing);
  const dots = [...depth].map(([node, at]) => ({ ...(drawing.node(String(node)) as { x: number; y: number }), node, depth: at }));
  const links = edges.map((edge) => ({
    edge,
    points: (drawing.edge(String(edge.source), String(edge.target)) as { points: { x: number; y: number }[] }).points,
  }));
  const size = drawing.graph() as { width?: number; height?: number };
  return { width: size.width ?? 0, height: size.height ?? 0, dots, links };
}
