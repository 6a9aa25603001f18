/** Small runs for the tests. */

import type { Arrow, Page, Run, Step } from "../src/types.ts";

export function step(number: number, more: Partial<Step> = {}): Step {
  const lists = { said: [], arrows: [], blocks: [], touches: [], progress: [], lifecycles: [] };
  const flags = { fault: false, skipped: false, extra: false, seen: "" };
  return { number, action: "", text: `step ${number}`, time_s: 0, ...flags, ...lists, ...more };
}

export function run(steps: Step[], more: Partial<Run> = {}): Run {
  const lanes = [
    { name: "sender 0", side: "sender", rank: 0 },
    { name: "receiver 0", side: "receiver", rank: 0 },
  ];
  const words = { name: "small", origin: "check", verdict: "holds", command: "", machine: "receiver" };
  const pools = [{ rank: 0, blocks: 2, block_tokens: 4 }];
  return { ...words, facts: [], lanes, pools, requests: [{ room: 1, tokens: 8 }], steps, marks: [], ...more };
}

export function page(runs: Run[], more: Partial<Page> = {}): Page {
  return { version: 1, title: "small", runs, properties: {}, machines: [], graph: null, ...more };
}

export function arrow(end: string, text = "OFFER", more: Partial<Arrow> = {}): Arrow {
  return { what: "message", end, source: "sender 0", target: "receiver 0", room: 1, label: text, text, ...more };
}
