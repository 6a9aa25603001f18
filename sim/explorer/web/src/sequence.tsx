/** The sequence diagram: time goes down, a row a step; the rows out of view are not in the document. */

import { useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { cycleOf } from "./fold.ts";
import { Flights } from "./flights.tsx";
import { groupBy } from "./group.ts";
import { usePrinting, useTwin, useView, useWidth } from "./hooks.ts";
import { roomClass, type Model } from "./model.ts";
import { alignRows, columnsOf, rowAt, rowsOf, textTop, type Columns, type Row } from "./rows.ts";
import type { Mark } from "./types.ts";
import { isBad, stepLine } from "./words.ts";
import { canvasMeasure, FAMILY } from "./wrap.ts";

const measures = { large: canvasMeasure(`12.5px ${FAMILY}`), small: canvasMeasure(`11.5px ${FAMILY}`) };

/** A run of more steps is printed as far as it is in view. */
export const PRINTED_MAX = 1000;

/** A sign for each kind of mark, and its words. */
export const SIGNS: Record<string, [string, string]> = {
  violation: ["✕", "violation"],
  "no-return": ["⚑", "point of no return"],
  resume: ["↻", "resume"],
  fault: ["!", "fault"],
  cycle: ["∞", "what repeats for ever begins"],
  inferred: ["≈", "concluded, not seen"],
};

interface RowProps {
  row: Row;
  columns: Columns;
  model: Model;
  marks: Mark[];
  step: number;
  id: string;
  go: (step: number) => void;
}

function Sayings({ row, columns, model, side }: Pick<RowProps, "row" | "columns" | "model"> & { side: "sender" | "receiver" }) {
  const items = row.sayings.filter((item) => (item.side === "sender") === (side === "sender"));
  if (!items.length) return null;
  const box = columns[side];
  return (
    <div class={`said ${side}`} style={{ left: `${box.x}px`, width: `${box.width}px`, top: `${textTop(row, columns)}px` }}>
      {items.map((item, i) => (
        <div key={i} class={`saying ${roomClass(model.rooms, item.room)}${columns.small ? " tall" : ""}`}>
          {item.badge && (!columns.small || item.above) && (
            <span class={!columns.small && item.badge === items[i - 1]?.badge ? "badge again" : "badge"}>{item.badge}</span>
          )}
          <span class={isBad(item.lines.join(" ")) ? "lines wrong" : "lines"}>
            {item.lines.map((line, j) => (
              <span key={j} class="textline">
                {line}{" "}
              </span>
            ))}
          </span>
        </div>
      ))}
    </div>
  );
}

function rowClass(row: Row, step: number, cycle: number): string {
  const number = row.step.number;
  const classes = ["row", number === step ? "current" : number > step ? "future" : "past"];
  for (const name of ["fault", "skipped", "extra"] as const) if (row.step[name]) classes.push(name);
  if (row.folded) classes.push("folded");
  if (cycle >= 0 && number >= cycle) classes.push("cycling");
  return classes.join(" ");
}

function SequenceRow({ row, columns, model, marks, step, id, go }: RowProps) {
  const number = row.step.number;
  const signs = [...new Set(marks.map((mark) => mark.kind))];
  const label = [stepLine(row.step, model.last), ...signs.map((kind) => SIGNS[kind]?.[1] ?? kind)].join(". ");
  return (
    <div
      id={id}
      class={rowClass(row, step, cycleOf(model.run))}
      role="option"
      aria-selected={number === step}
      aria-setsize={model.last + 1}
      aria-posinset={number + 1}
      aria-label={label}
      data-step={number}
      style={{ top: `${row.top}px`, height: `${row.height}px` }}
      onClick={() => go(number)}
    >
      <span class="number">{number}</span>
      <span class="signs">
        {row.step.fault && !signs.includes("fault") && <b class="sign fault">!</b>}
        {signs.map((kind) => (
          <b key={kind} class={`sign ${kind}`} title={marks.filter((mark) => mark.kind === kind).map((mark) => mark.text).join("\n")}>
            {SIGNS[kind]?.[0] ?? "•"}
          </b>
        ))}
      </span>
      <span class="title" style={{ left: `${columns.title.x}px`, width: `${columns.title.width}px` }}>
        {row.title.map((line, i) => (
          <span key={i} class="textline">
            {line}{" "}
          </span>
        ))}
      </span>
      {!row.folded && <Sayings row={row} columns={columns} model={model} side="sender" />}
      {!row.folded && <Sayings row={row} columns={columns} model={model} side="receiver" />}
    </div>
  );
}

function Heads({ model, columns }: { model: Model; columns: Columns }) {
  const several = (side: string): boolean => model.run.lanes.filter((lane) => lane.side === side).length > 1;
  const text = { y: 17 };
  const lanes = model.run.lanes;
  return (
    <svg class="lane-heads" width={columns.width} height={26} aria-hidden="true">
      {lanes.map((lane) => {
        const x = columns.lanes.get(lane.name) ?? 0;
        const short = several(lane.side) ? (lane.side === "sender" ? "s" : "r") + lane.rank : null;
        if (short) return <text key={lane.name} class="lane-name" x={x} {...text} text-anchor="middle">{short}</text>;
        const left = lane.side === "sender";
        return <text key={lane.name} class="lane-name" x={x + (left ? 4 : -4)} {...text} text-anchor={left ? "end" : "start"}>{lane.name}</text>;
      })}
      {several("receiver") && <text class="lane-side" x={columns.receiver.x + 4} {...text}>receiver ranks</text>}
      {several("sender") && <text class="lane-side" x={columns.sender.x + columns.sender.width} {...text} text-anchor="end">sender ranks</text>}
      <text class="lane-side" x={columns.network.x + columns.network.width / 2} {...text} text-anchor="middle">network</text>
    </svg>
  );
}

export interface SequenceProps {
  model: Model;
  /** The run beside this one, or null: then rows of one number are equally high. */
  other: Model | null;
  step: number;
  room: number | null;
  id: string;
  go: (step: number) => void;
}

export function Sequence({ model, other, step, room, id, go }: SequenceProps) {
  const scroller = useRef<HTMLDivElement>(null);
  const width = useWidth(scroller);
  const columns = useMemo(() => columnsOf(Math.max(280, width), model.run.lanes), [width, model]);
  const current = room === null ? -1 : step;
  const { rows, total } = useMemo(() => {
    const measure = columns.small ? measures.small : measures.large;
    const options = { columns, measure, room, current };
    return alignRows(rowsOf(model.run, options), other ? rowsOf(other.run, options) : []);
  }, [columns, model, other, room, current]);
  useTwin(scroller, other !== null);
  const view = useView(scroller, model);
  const marks = useMemo(() => groupBy(model.run.marks, (mark) => mark.step), [model]);
  const here = Math.min(step, model.last);

  useLayoutEffect(() => {
    const element = scroller.current;
    const row = rows[here];
    if (!element || !row) return;
    const above = row.top - 40;
    const below = row.top + row.height + 70 - element.clientHeight;
    if (element.scrollTop > above) element.scrollTop = Math.max(0, above);
    else if (element.scrollTop < below) element.scrollTop = below;
  }, [here, rows]);

  const all = usePrinting() && model.last <= PRINTED_MAX;
  const first = all ? 0 : Math.max(0, rowAt(rows, view.top - 200));
  const last = all ? model.last : Math.min(model.last, rowAt(rows, view.top + view.height + 200));
  const present = rows[here]!;
  return (
    <div
      class="sequence"
      ref={scroller}
      role="listbox"
      tabIndex={0}
      aria-label={`steps of ${model.run.name}`}
      aria-activedescendant={`${id}-${here}`}
    >
      <Heads model={model} columns={columns} />
      <div role="presentation" class={`rows${columns.small ? " small-text" : ""}${columns.stacked ? " stacked" : ""}`} style={{ height: `${total}px` }}>
        <svg class="ground-lines" width={columns.width} height={total} aria-hidden="true">
          <rect class="network" x={columns.network.x} y={0} width={columns.network.width} height={total} />
        </svg>
        {rows.slice(first, last + 1).map((row) => (
          <SequenceRow
            key={row.step.number}
            {...{ row, columns, model, step, go }}
            id={`${id}-${row.step.number}`}
            marks={marks.get(row.step.number) ?? []}
          />
        ))}
        {(here < first || here > last) && (
          <SequenceRow {...{ row: present, columns, model, step, go }} id={`${id}-${here}`} marks={marks.get(here) ?? []} />
        )}
        <svg class="flights" width={columns.width} height={total} aria-hidden="true">
          {[...columns.lanes.values()].map((x) => (
            <line key={x} class="lifeline" x1={x} x2={x} y1={0} y2={total} />
          ))}
          <Flights {...{ model, rows, columns, room, step, go }} window={[first, last]} />
        </svg>
      </div>
    </div>
  );
}
