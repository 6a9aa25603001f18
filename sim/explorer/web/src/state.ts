/** Where a reader is, and how it changes. */

import { readLink, writeLink, type Place } from "./links.ts";
import { choicesAt, edgesByNode, follow, hopelessNodes, ownRun, type Choices } from "./path.ts";
import type { Edge, Graph, Page, Run } from "./types.ts";

/** The runs that a place shows: the first, or the reader's own path; and the one beside it, if there is one. */
export interface Shown {
  main: Run;
  beside: Run | null;
  own: boolean;
  edges: Edge[];
  count: number;
}

/** What the page knows besides its data; made once. */
export interface World {
  page: Page;
  graph: Graph | null;
  lists: Edge[][];
  hopeless: Set<number>;
}

export function worldOf(page: Page): World {
  const { graph } = page;
  return { page, graph, lists: graph ? edgesByNode(graph) : [], hopeless: graph ? hopelessNodes(graph) : new Set() };
}

const owned = new WeakMap<World, Map<string, { run: Run; edges: Edge[] }>>();

/** The reader's own run, the same object as long as the path is the same. */
function ownOf(world: World, graph: Graph, place: Place): { run: Run; edges: Edge[] } {
  const key = `${place.from}/${place.take.join(".")}`;
  const known = owned.get(world) ?? new Map<string, { run: Run; edges: Edge[] }>();
  const before = known.get(key);
  if (before) return before;
  const edges = follow(graph, world.lists, place);
  const made = { run: ownRun(world.page, graph, edges, place.from), edges };
  known.clear();
  known.set(key, made);
  owned.set(world, known);
  return made;
}

export function shownAt(world: World, place: Place): Shown {
  const { page, graph } = world;
  const first = page.runs[0]!;
  const own = graph !== null && place.take.length > 0;
  const mine = own ? ownOf(world, graph, place) : { run: first, edges: [] as Edge[] };
  const second = own ? first : (page.runs[1] ?? null);
  const beside = place.compare ? second : null;
  const count = Math.max(mine.run.steps.length, beside?.steps.length ?? 0);
  return { main: mine.run, beside, own, edges: mine.edges, count };
}

/** What can happen after the present step, and which of it the shown run takes. */
export function choicesHere(world: World, place: Place, shown: Shown): Choices | null {
  if (!world.graph) return null;
  const chosen = Math.max(0, place.step - place.from);
  const edges = shown.own && place.step > place.from ? shown.edges.slice(0, chosen) : [];
  const choices = choicesAt(world.graph, world.lists, edges.length ? place.from : place.step, edges);
  const marks = shown.main.marks.filter((mark) => mark.kind === "violation" && mark.step === place.step);
  return { ...choices, broken: [...new Set([...choices.broken, ...marks.map((mark) => mark.property)])] };
}

/** The edge of the graph that led to the present step, or null. */
export function edgeBefore(world: World, place: Place, shown: Shown): Edge | null {
  const { graph, lists } = world;
  if (!graph || place.step === 0) return null;
  if (shown.own && place.step > place.from) return shown.edges[place.step - place.from - 1] ?? null;
  const source = graph.path[place.step - 1] ?? -1;
  const target = graph.path[place.step] ?? -1;
  const between = source < 0 || target < 0 ? [] : lists[source]!.filter((edge) => edge.target === target);
  const text = shown.main.steps[place.step]?.text;
  return between.find((edge) => graph.steps[edge.step]!.text === text) ?? between[0] ?? null;
}

/** The place after taking a choice at the present step. */
export function afterTaking(place: Place, choice: number, taken: number): Place {
  const step = place.step + 1;
  if (choice === taken) return { ...place, step };
  const own = place.take.length > 0 && place.step >= place.from;
  if (!own) return { ...place, step, from: place.step, take: [choice] };
  return { ...place, step, take: [...place.take.slice(0, place.step - place.from), choice] };
}

/** The place before the reader's last choice. */
export function afterUndo(place: Place): Place {
  if (!place.take.length) return place;
  const take = place.take.slice(0, -1);
  return { ...place, take, step: place.from + take.length };
}

/** Back on the recorded run, where the reader left it. */
export const afterReturn = (place: Place): Place => ({ ...place, take: [], step: Math.min(place.step, place.from) });

/** Where a page opens: at the first violation, else at the end of nothing. */
function opening(page: Page): number {
  return page.runs[0]!.marks.find((mark) => mark.kind === "violation")?.step ?? 0;
}

/** A place with all that cannot be put right: steps that are there, rooms that are known, choices that exist. */
export function settle(world: World, wanted: Partial<Place>): Place {
  const { page, graph } = world;
  const rooms = page.runs[0]!.requests.map((request) => request.room);
  const from = Math.min(wanted.from ?? 0, page.runs[0]!.steps.length - 1);
  const place: Place = {
    step: wanted.step ?? opening(page),
    room: wanted.room !== undefined && wanted.room !== null && rooms.includes(wanted.room) ? wanted.room : null,
    compare: (wanted.compare ?? page.runs.length > 1) && (page.runs.length > 1 || (wanted.take?.length ?? 0) > 0),
    from,
    take: graph ? (wanted.take ?? []) : [],
  };
  if (graph && place.take.length) place.take = follow(graph, world.lists, place).map((edge) => edge.choice);
  const shown = shownAt(world, place);
  return { ...place, step: Math.max(0, Math.min(place.step, shown.count - 1)) };
}

/** The place that the address says. */
export const placeOfAddress = (world: World, hash = location.hash): Place => settle(world, readLink(hash));

/** Writes the place into the address, without a new entry in the history. */
export function showInAddress(world: World, place: Place): void {
  const link = writeLink(place, world.page.runs.length > 1 || place.take.length > 0);
  if (link === location.hash) return;
  try {
    history.replaceState(null, "", link);
  } catch {
    location.replace(link);
  }
}
