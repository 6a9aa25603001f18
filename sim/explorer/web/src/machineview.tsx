/** The lifecycles: each as a diagram, its present state and the move that led there lit. */

import { curveBasis, line } from "d3-shape";
import { useState } from "preact/hooks";
import { blockKey, lifecycleKey, type Snapshot } from "./fold.ts";
import { drawMachine, type Drawing, type MoveLine } from "./machine.ts";
import type { Model } from "./model.ts";
import { rowConcerns } from "./pool.ts";
import type { Lifecycle, Machine, Step } from "./types.ts";
import { canvasMeasure, FAMILY } from "./wrap.ts";

const measure = canvasMeasure(`11px ${FAMILY}`);
const drawings = new WeakMap<Machine, Drawing>();

function drawingOf(machine: Machine): Drawing {
  const before = drawings.get(machine);
  if (before) return before;
  const drawing = drawMachine(machine, measure);
  drawings.set(machine, drawing);
  return drawing;
}

/** The head of a line that ends at its last point. */
function headAt(points: { x: number; y: number }[]): string {
  const end = points.at(-1)!;
  const before = points.at(-2) ?? end;
  const angle = (Math.atan2(end.y - before.y, end.x - before.x) * 180) / Math.PI;
  return `translate(${end.x} ${end.y}) rotate(${angle})`;
}

const smooth = line<{ x: number; y: number }>().x((at) => at.x).y((at) => at.y).curve(curveBasis);

const bow = ([a, b, c, d]: { x: number; y: number }[]): string =>
  `M${a!.x} ${a!.y}C${b!.x} ${b!.y} ${c!.x} ${c!.y} ${d!.x} ${d!.y}`;

function Line({ item, lit, event }: { item: MoveLine; lit: boolean; event: string }) {
  return (
    <g class={lit ? "move lit" : "move"}>
      <path class="wire" d={item.loop ? bow(item.points) : (smooth(item.points) ?? "")} />
      <path class="tip" transform={headAt(item.points)} d="M0 0L-7 -3.5L-7 3.5Z" />
      <text x={item.label.x} y={item.label.y + 3.5} text-anchor="middle">
        {item.events.map((name, i) => (
          <tspan key={name} class={lit && name === event ? "taken" : ""}>
            {(i ? " / " : "") + name}
          </tspan>
        ))}
      </text>
    </g>
  );
}

interface DiagramProps {
  machine: Machine;
  state: string;
  source: string;
  event: string;
  words: string;
}

/** One lifecycle. */
export function Diagram({ machine, state, source, event, words }: DiagramProps) {
  const drawing = drawingOf(machine);
  const isLit = (item: MoveLine): boolean => event !== "" && item.source === source && item.target === state;
  const lines = [...drawing.lines].sort((a, b) => Number(isLit(a)) - Number(isLit(b)));
  return (
    <svg class="machine" role="img" aria-label={words} viewBox={`0 0 ${drawing.width} ${drawing.height}`}>
      {lines.map((item) => (
        <Line key={`${item.source}>${item.target}`} item={item} lit={isLit(item)} event={event} />
      ))}
      {drawing.boxes.map((box) => (
        <g key={box.name} class={`state${box.name === state ? " now" : ""}${box.terminal ? " terminal" : ""}`} transform={`translate(${box.x} ${box.y})`}>
          <rect x={-box.width / 2} y={-box.height / 2} width={box.width} height={box.height} rx={box.terminal ? 4 : 14} />
          {box.terminal && <rect class="inner" x={-box.width / 2 + 3} y={-box.height / 2 + 3} width={box.width - 6} height={box.height - 6} rx={2} />}
          <text y={4} text-anchor="middle">{box.name}</text>
        </g>
      ))}
    </svg>
  );
}

/** Something that is in a state of a lifecycle. `event` is empty where nothing led there. */
export interface Item {
  key: string;
  name: string;
  state: string;
  source: string;
  event: string;
  reason: string;
}

interface OneProps {
  machine: Machine;
  items: Item[];
  /** What the step itself moved last, if anything. */
  moved: string | undefined;
}

/** One of several of a kind: the one that moved last, or the one that the reader chose. */
function OneKind({ machine, items, moved }: OneProps) {
  const [chosen, setChosen] = useState("");
  const shown = items.find((item) => item.key === chosen) ?? items.find((item) => item.key === moved) ?? items[0];
  if (!shown) return null;
  const last = shown.event ? `; last move: ${shown.event}, from ${shown.source}` : "";
  return (
    <figure class="lifecycle">
      <figcaption>
        <b class="kind">{machine.name.split(" ")[0]}</b>
        {items.length > 1 ? (
          <select aria-label={`which ${machine.name}`} value={shown.key} onChange={(event) => setChosen(event.currentTarget.value)}>
            {items.map((item) => (
              <option key={item.key} value={item.key}>
                {item.name}: {item.state}
              </option>
            ))}
          </select>
        ) : (
          <span>{shown.name}</span>
        )}
        <span class="now-word">
          now <b>{shown.state}</b>
          {shown.reason && ` (${shown.reason})`}
        </span>
      </figcaption>
      <Diagram
        {...{ machine, state: shown.state, source: shown.source, event: shown.event }}
        words={`${machine.name}, ${shown.name}: now ${shown.state}${last}`}
      />
    </figure>
  );
}

/** The lifecycles of requests on one side. */
function requestItems(all: Lifecycle[], side: string): Item[] {
  const several = side === "sender" && new Set(all.map((item) => item.rank)).size > 1;
  return all
    .filter((item) => item.lane.startsWith(side))
    .map((item) => ({
      ...item,
      key: lifecycleKey(item),
      name: `${item.lane}${several ? ` for rank ${item.rank}` : ""}, room ${item.room}`,
    }));
}

/** The blocks; the event that led to a state is the first of the table that leads there from the state before. */
function blockItems(model: Model, step: number, room: number | null, machine: Machine): Item[] {
  const rows = room === null ? model.rows : model.rows.filter((row) => rowConcerns(row, room));
  return rows.map((row) => {
    const at = row.segments.findIndex((segment) => segment.first <= step && step <= segment.last);
    const block = row.segments[at]!.block;
    const before = block.through.at(-1)?.[0] ?? row.segments[at - 1]?.block.state ?? "";
    const move = machine.moves.find((item) => item.source === before && item.target === block.state);
    return {
      key: blockKey(row),
      name: `r${row.rank} b${row.block}`,
      ...{ state: block.state, source: before, event: move?.event ?? "", reason: block.room >= 0 ? `room ${block.room}` : "" },
    };
  });
}

export interface LifecyclesProps {
  machines: Machine[];
  model: Model;
  step: Step;
  snapshot: Snapshot;
  room: number | null;
}

export function Lifecycles({ machines, model, step, snapshot, room }: LifecyclesProps) {
  const fits = (item: { room: number }): boolean => room === null || item.room === room;
  const all = [...snapshot.lifecycles.values()].filter(fits);
  const moved = (side: string): string | undefined => {
    const last = step.lifecycles.filter((item) => item.lane.startsWith(side) && fits(item)).at(-1);
    return last && lifecycleKey(last);
  };
  const touched = step.blocks.filter((block) => room === null || fits(block)).at(0);
  const machine = (name: string): Machine | undefined => machines.find((item) => item.name === name);
  const [receiver, sender, block] = [machine(model.run.machine), machine("sender"), machine("block")];
  return (
    <section class="panel lifecycles" aria-label="lifecycles">
      <h3>Lifecycles</h3>
      <div class="diagrams">
        {sender && <OneKind machine={sender} items={requestItems(all, "sender")} moved={moved("sender")} />}
        {receiver && <OneKind machine={receiver} items={requestItems(all, "receiver")} moved={moved("receiver")} />}
        {block && (
          <OneKind machine={block} items={blockItems(model, step.number, room, block)} moved={touched && blockKey(touched)} />
        )}
      </div>
    </section>
  );
}
