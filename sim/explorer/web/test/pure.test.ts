/** The parts that need no browser. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { flightsOf, spanOf, underWay } from "../src/arrows.ts";
import { foldTo, nextOf } from "../src/fold.ts";
import { readLink, writeLink } from "../src/links.ts";
import { edgesByNode, follow, hopelessNodes, ownRun } from "../src/path.ts";
import { findings, poolRows } from "../src/pool.ts";
import { readPage } from "../src/read.ts";
import { alignRows, columnsOf, rowAt, rowsOf, tracksOf } from "../src/rows.ts";
import { aheadOf, seriesOf } from "../src/series.ts";
import type { Block, Graph, Touch } from "../src/types.ts";
import { sectionsOf } from "../src/words.ts";
import { wrap } from "../src/wrap.ts";
import { arrow, page, run, step } from "./kit.ts";

const block = (state: string, more: Partial<Block> = {}): Block => ({
  ...{ rank: 0, block: 0, state, generation: 0, room: 1, seq: 0, start: 0, tokens: 4, holds: "", through: [] },
  ...more,
});
const touch = (what: string, more: Partial<Touch> = {}): Touch => ({
  ...{ rank: 0, block: 0, what, room: 1, start: 0, count: 4, wrong: "", early: false },
  ...more,
});

test("an arrival belongs to the earliest departure that is open", () => {
  const steps = [["leave"], ["leave"], ["arrive"], ["arrive"]].map((ends, i) => step(i, { arrows: ends.map((end) => arrow(end)) }));
  const flights = flightsOf(run(steps));
  assert.deepEqual(flights.map((flight) => [flight.left, flight.arrived]), [[0, 2], [1, 3]]);
});

test("copies, losses, what is held, and what nobody saw leave", () => {
  const ends = [["leave"], ["copy"], ["hold"], ["arrive"], ["lose"], ["arrive"]];
  const flights = flightsOf(run(ends.map((list, i) => step(i, { arrows: list.map((end) => arrow(end)) }))));
  assert.equal(flights.length, 3);
  const [first, copy, unseen] = flights;
  assert.deepEqual([first!.held, first!.arrived, first!.copy], [2, 3, false]);
  assert.deepEqual([copy!.left, copy!.lost, copy!.copy], [1, 4, true]);
  assert.deepEqual([unseen!.left, unseen!.arrived, spanOf(unseen!, 9)], [-1, 5, [5, 5]]);
  assert.deepEqual(underWay(flights, 2).map((flight) => flight.id), [0, 1]);
});

test("what was never ended is under way at the end", () => {
  const flights = flightsOf(run([step(0, { arrows: [arrow("leave")] }), step(1)]));
  assert.deepEqual(spanOf(flights[0]!, 1), [0, 1]);
  assert.equal(underWay(flights, 1).length, 1);
});

test("flights at the same time have tracks of their own", () => {
  const texts = ["a", "b", "c"];
  const steps = [step(0, { arrows: texts.map((text) => arrow("leave", text)) }), step(1), step(2)];
  steps.push(step(3, { arrows: texts.map((text) => arrow("arrive", text)) }));
  const tracks = tracksOf(flightsOf(run(steps)), 3);
  assert.deepEqual([...tracks.values()].sort(), [0, 1, 2]);
});

test("changes add up, the last word counts", () => {
  const one = run([step(0), step(1, { blocks: [block("Granted"), block("Landed")] }), step(2, { blocks: [block("Free")] })]);
  assert.equal(foldTo(one, 0).blocks.size, 0);
  assert.equal(foldTo(one, 1).blocks.get("0/0")!.state, "Landed");
  assert.equal(foldTo(one, 99).blocks.get("0/0")!.state, "Free");
});

test("a block's row has no gap, and is free before anything is said of it", () => {
  const rows = poolRows(run([step(0), step(1), step(2, { blocks: [block("Granted")] }), step(3)]));
  assert.equal(rows.length, 2);
  const spans = rows[0]!.segments.map((segment) => [segment.first, segment.last, segment.block.state]);
  assert.deepEqual(spans, [[0, 1, "Free"], [2, 3, "Granted"]]);
  assert.deepEqual(rows[1]!.segments.map((segment) => [segment.first, segment.last]), [[0, 3]]);
});

test("a read before the write is found, with the write", () => {
  const early = step(1, { touches: [touch("read", { early: true, wrong: "poison" })] });
  const late = step(3, { touches: [touch("write")] });
  assert.deepEqual(findings(poolRows(run([step(0), early, step(2), late]))).map((item) => [item.step, item.written]), [[1, 3]]);
  assert.deepEqual(findings(poolRows(run([step(0), early]))).map((item) => item.written), [-1]);
});

test("where the watermark is ahead of what landed", () => {
  const at = (landed: number, watermark: number) => ({ rank: 0, room: 1, epoch: "1.1", granted: 8, landed, watermark, delivered: 0 });
  const steps = [step(0, { progress: [at(0, 0)] }), step(1, { progress: [at(0, 4)] }), step(2), step(3, { progress: [at(4, 4)] })];
  assert.deepEqual(aheadOf(seriesOf(run(steps))[0]!, 3), [{ first: 1, last: 2 }]);
});

test("links say all of a place, and nonsense nothing", () => {
  const place = { step: 7, room: 1, compare: true, from: 5, take: [3, 0, 2] };
  assert.equal(writeLink(place, true), "#step=7&room=1&compare=1&from=5&take=3.0.2");
  assert.deepEqual(readLink(writeLink(place, true)), place);
  assert.deepEqual(readLink("#step=-1&room=x&take=1.&from=2&compare=yes"), { compare: false });
});

test("jumps", () => {
  assert.equal(nextOf([2, 5, 9], 5), 9);
  assert.equal(nextOf([2, 5, 9], 5, true), 2);
  assert.equal(nextOf([2], 2), null);
});

const GRAPH: Graph = {
  ...{ nodes: 4, expanded: 3, complete: true, depth: 9, ends: [2], path: [0, 1] },
  standstills: [{ node: 1, property: "L1", text: "nobody moves" }],
  steps: [step(0, { text: "left", time_s: 1 }), step(0, { text: "right", time_s: 2, fault: true })],
  choices: ["left", "right"],
  edges: [
    { source: 0, target: 1, choice: 0, step: 0, broken: [], broken_text: "" },
    { source: 0, target: 2, choice: 1, step: 1, broken: [], broken_text: "" },
    { source: 2, target: 3, choice: 0, step: 0, broken: ["I1"], broken_text: "bytes where they may not be" },
  ],
};

test("a path of one's own is a run: renumbered, with its times, marks and verdict", () => {
  const whole = page([run([step(0, { time_s: 10 }), step(1)])], { graph: GRAPH });
  const edges = follow(GRAPH, edgesByNode(GRAPH), { from: 0, take: [1, 0, 1] });
  assert.equal(edges.length, 2, "as far as the graph goes");
  const own = ownRun(whole, GRAPH, edges, 0);
  assert.deepEqual(own.steps.map((item) => [item.number, item.text, item.time_s]), [[0, "step 0", 10], [1, "right", 12], [2, "left", 13]]);
  assert.deepEqual(own.marks.map((mark) => [mark.kind, mark.step]), [["fault", 1], ["violation", 2]]);
  assert.equal(own.verdict, "violated");
  const still = ownRun(whole, GRAPH, follow(GRAPH, edgesByNode(GRAPH), { from: 0, take: [0] }), 0);
  assert.deepEqual(still.marks.map((mark) => mark.property), ["L1"]);
});

test("from where a good end can be reached", () => {
  assert.deepEqual([...hopelessNodes(GRAPH)], [1, 3]);
  assert.deepEqual([...hopelessNodes({ ...GRAPH, ends: [1] })], [2, 3], "a step that breaks something leads nowhere");
  assert.equal(hopelessNodes({ ...GRAPH, complete: false }).size, 0);
});

test("lines are no wider than they may be, and lose no word", () => {
  const measure = (text: string): number => text.length;
  assert.deepEqual(wrap("grant 1 [8,16) in b2", 8, measure), ["grant 1", "[8,16)", "in b2"]);
  assert.deepEqual(wrap("ResumeRequested", 6, measure), ["Resume", "Reques", "ted"]);
});

test("rows stand one below the other, and those of two runs side by side", () => {
  const long = run([step(0), step(1, { said: Array(9).fill({ lane: "receiver 0", room: 1, text: "word" }) }), step(2)]);
  const columns = columnsOf(900, long.lanes);
  const options = { columns, measure: (text: string) => text.length * 6, room: null, current: -1 };
  const mine = rowsOf(run([step(0), step(1)]), options);
  const { rows, total } = alignRows(mine, rowsOf(long, options));
  assert.equal(rows.length, 2);
  assert.equal(rows[1]!.height, rowsOf(long, options)[1]!.height);
  assert.ok(total > rows[1]!.top + rows[1]!.height);
  assert.equal(rowAt(rows, rows[1]!.top + 1), 1);
});

test("what a step changed, said once", () => {
  const before = foldTo(run([step(0, { blocks: [block("Free"), block("Free", { block: 1 })] })]), 0);
  const now = step(1, { blocks: [block("Granted"), block("Granted", { block: 1 })] });
  const [section] = sectionsOf(now, before);
  assert.deepEqual(section!.sentences.map((item) => item.head), ["r0 b0 b1"]);
  assert.match(section!.sentences[0]!.body, /^Free → Granted, room 1, grant 0/);
});

test("absent fields are their defaults; another version is refused", () => {
  const raw = { ...page([run([])]), runs: [{ ...run([]), steps: [{ number: 0, blocks: [{ rank: 0, block: 0, state: "Free", generation: 0 }] }], marks: undefined }] };
  const first = readPage(JSON.stringify(raw)).runs[0]!;
  assert.equal(first.steps[0]!.blocks[0]!.room, -1);
  assert.deepEqual(first.marks, []);
  assert.throws(() => readPage(JSON.stringify({ ...raw, version: 9 })), /version 9/);
  assert.throws(() => readPage("{"), /damaged/);
});
