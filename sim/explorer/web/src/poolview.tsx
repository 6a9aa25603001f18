/** The block pool: a row a block, a column a step. */

import { roomClass, type Model } from "./model.ts";
import { rowConcerns, shout, type Finding, type PoolRow, type Segment, type TouchAt } from "./pool.ts";
import type { Scale } from "./scale.ts";
import { blockWords, touchWords } from "./words.ts";
import { canvasMeasure, FAMILY } from "./wrap.ts";

const labelWidth = canvasMeasure(`11px ${FAMILY}`);

/** The width of words that are shouted. */
export const shoutWidth = canvasMeasure(`700 10.5px ${FAMILY}`);

/** A sign and a pattern for each state of a block, in the order in which it goes through them. */
export const BLOCK_STATES: [string, string][] = [
  ["Free", "nobody's"],
  ["Reserved", "taken, not yet granted"],
  ["Granted", "open to the sender's writes"],
  ["Landed", "written, may be read"],
  ["Reading", "being copied out"],
  ["Quarantined", "may still be written, by nobody who should"],
];

/** The patterns that tell states apart without colour. */
export function Patterns() {
  return (
    <svg class="patterns" width={0} height={0} aria-hidden="true">
      <defs>
        <pattern id="p-Reserved" width={7} height={7} patternUnits="userSpaceOnUse">
          <circle class="ink-fill" cx={2} cy={2} r={0.9} />
        </pattern>
        <pattern id="p-Granted" width={8} height={8} patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
          <path class="ink-line" d="M0 0V8" />
        </pattern>
        <pattern id="p-Reading" width={5} height={5} patternUnits="userSpaceOnUse">
          <path class="ink-line" d="M0 2.5H5" />
        </pattern>
        <pattern id="p-Quarantined" width={7} height={7} patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
          <path class="ink-line heavy" d="M0 0V7M0 0H7" />
        </pattern>
        <pattern id="p-alarm" width={9} height={9} patternUnits="userSpaceOnUse" patternTransform="rotate(-45)">
          <rect class="alarm-ground" width={9} height={9} />
          <path class="alarm-stripe" d="M0 2.25H9" />
        </pattern>
      </defs>
    </svg>
  );
}

/** The box of a state: its room's colour, and its pattern over it. */
export function StateBox(props: { x: number; y: number; width: number; height: number; state: string; room: string }) {
  const { state, room, ...box } = props;
  const known = BLOCK_STATES.some(([name]) => name === state);
  return (
    <g class={`block ${room} state-${known ? state : "Other"}`}>
      <rect class="fill" {...box} rx={2} />
      {known && state !== "Free" && state !== "Landed" && <rect class="over" {...box} rx={2} fill={`url(#p-${state})`} />}
    </g>
  );
}

/** How wide the words of a wrong touch are, with their ground. */
export const tagWidth = (finding: Finding): number => shoutWidth(shout(finding)) + 14;

const isFaint = (room: number, only: number | null): boolean => only !== null && room >= 0 && room !== only;

interface RowProps {
  row: PoolRow;
  model: Model;
  scale: Scale;
  y: number;
  height: number;
  view: [number, number];
  /** Where the view begins, in pixels; labels of what began before stand there. */
  from: number;
  /** Blocks and touches of other rooms are faint; null: of none. */
  only: number | null;
}

function segmentLabel(segment: Segment, width: number, rooms: number): string {
  const { state, room } = segment.block;
  if (state === "Free") return "";
  const long = room >= 0 ? `${state} · room ${room}` : state;
  const short = room >= 0 && rooms > 1 ? [`${state} #${room}`, `${state[0]}#${room}`, `#${room}`] : [state, state[0]!];
  return [long, ...short].find((text) => width > labelWidth(text) + 8) ?? "";
}

function SegmentBox({ segment, props }: { segment: Segment; props: RowProps }) {
  const { row, model, scale, y, height } = props;
  const x = scale.left(segment.first) + 1;
  const width = scale.left(segment.last + 1) - x - 1;
  const { block } = segment;
  const touched = row.touches.find((touch) => touch.step >= segment.first && touch.step <= segment.last);
  // The label stands before the sign of a touch if it is in view and leaves room there, else behind it.
  const sign = touched ? scale.left(touched.step + 1) : -1;
  const inView = Math.max(x, props.from);
  const before = sign - 18 > inView + 12;
  const start = !before && sign > inView ? sign : inView;
  const until = before ? sign - 18 : x + width;
  const name = `r${block.rank} b${block.block}`;
  const when = segment.first === segment.last ? `step ${segment.first}` : `steps ${segment.first} to ${segment.last}`;
  return (
    <g class={isFaint(block.room, props.only) ? "faint" : ""}>
      <title>{`${name}, ${when}\n${blockWords(block)}`}</title>
      <StateBox {...{ x, y, width, height }} state={block.state} room={roomClass(model.rooms, block.room)} />
      {height >= 13 && (
        <text class="seg-label" x={start + 5} y={y + height / 2 + 3.5}>
          {segmentLabel(segment, until - start, model.rooms.length)}
        </text>
      )}
    </g>
  );
}

/** The states that a block went through within one step, from left to right in its column, if there is room for it. */
function PassedBoxes({ props }: { props: RowProps }) {
  const { row, model, scale, y, height, view } = props;
  const seen = row.passed.filter((item) => item.step >= view[0] && item.step <= view[1]);
  if (scale.column < 24) return null;
  return (
    <g class="passed">
      {seen.map(({ step, through }) => {
        const wide = Math.min(14, Math.floor((scale.column - 18) / through.length));
        const words = through.map(([state, room]) => (room >= 0 ? `${state}, room ${room}` : state)).join("; then ");
        return (
          <g key={step}>
            <title>{`r${row.rank} b${row.block}, within step ${step}\n${words}`}</title>
            {through.map(([state, room], i) => (
              <StateBox key={i} x={scale.left(step) + 1 + i * wide} width={wide - 1} {...{ y, height, state }} room={roomClass(model.rooms, room)} />
            ))}
          </g>
        );
      })}
    </g>
  );
}

/** Where the ordinary touches of one step stand in its column: bytes land from above, copies leave below. */
function TouchSign({ touch, props, index }: { touch: TouchAt; props: RowProps; index: number }) {
  const { scale, y, height } = props;
  const size = Math.min(7, height / 2 - 2);
  const x = scale.left(touch.step + 1) - 2 - size - index * (size * 2 + 1);
  const middle = y + height / 2;
  const d = touch.what === "write" ? `M${-size} ${-size}H${size}L0 ${size}Z` : `M${-size} ${size}H${size}L0 ${-size}Z`;
  const faint = isFaint(touch.room, props.only) ? " faint" : "";
  return (
    <path class={`touch ${touch.what}${faint}`} transform={`translate(${x} ${middle})`} d={d}>
      <title>{`step ${touch.step}, r${touch.rank} b${touch.block}: ${touchWords(touch)}`}</title>
    </path>
  );
}

export function PoolRowView(props: RowProps) {
  const { row, view } = props;
  const [first, last] = view;
  const segments = row.segments.filter((segment) => segment.first <= last && segment.last >= first);
  const plain = row.touches.filter((touch) => !touch.early && !touch.wrong && touch.step >= first && touch.step <= last);
  const index = (touch: TouchAt): number => plain.filter((t) => t.step === touch.step).indexOf(touch);
  return (
    <g>
      {segments.map((segment) => (
        <SegmentBox key={segment.first} segment={segment} props={props} />
      ))}
      <PassedBoxes props={props} />
      {plain.map((touch, i) => (
        <TouchSign key={`${touch.step}-${i}`} touch={touch} props={props} index={index(touch)} />
      ))}
    </g>
  );
}

/** A wrong touch, shouted: its cell, its words, and an arrow to the write that came too late. */
export function AlarmView(props: { finding: Finding; scale: Scale; y: number; height: number }) {
  const { finding, scale, y, height } = props;
  const x = scale.left(finding.step);
  const words = shout(finding);
  const wide = tagWidth(finding);
  const after = x + scale.column + 5;
  const late = finding.written >= 0 ? scale.left(finding.written) : -1;
  const right = after + wide <= scale.total && (late < 0 || late > after + wide);
  const left = right ? after : Math.max(2, x - wide - 5);
  const middle = y + height / 2;
  const tall = Math.min(18, height - 1);
  return (
    <g class="alarm">
      <title>{`step ${finding.step}, r${finding.rank} b${finding.block}: ${touchWords(finding)}`}</title>
      <rect class="alarm-cell" x={x + 1} y={y} width={scale.column - 2} height={height} fill="url(#p-alarm)" />
      <circle class="alarm-disc" cx={x + scale.column / 2} cy={middle} r={Math.min(8, height / 2)} />
      <text class="alarm-sign" x={x + scale.column / 2} y={middle + 4.5} text-anchor="middle">
        !
      </text>
      {late >= 0 && (
        <g class="alarm-late">
          <rect x={late + 1} y={y} width={scale.column - 2} height={height} rx={2}>
            <title>{`step ${finding.written}: only here it is written`}</title>
          </rect>
          <path d={`M${x + scale.column} ${y + height - 2}C${x + scale.column + 20} ${y + height + 7} ${late - 20} ${y + height + 7} ${late + 2} ${y + height - 2}`} />
          <path d={`M${late - 6} ${y + height + 1}L${late + 2} ${y + height - 2}L${late - 2} ${y + height + 6}`} />
        </g>
      )}
      <rect class="alarm-tag" x={left} y={middle - tall / 2} width={wide} height={tall} rx={3} />
      <text class="alarm-words" x={left + wide / 2} y={middle + 3.8} text-anchor="middle">
        {words}
      </text>
    </g>
  );
}

/** The rows to show: of a room only if `room` is not null; of a large pool only those that ever change. */
export function shownRows(model: Model, room: number | null): PoolRow[] {
  const all = room === null ? model.rows : model.rows.filter((row) => rowConcerns(row, room));
  if (all.length <= 24) return all;
  return all.filter((row) => row.touches.length > 0 || row.segments.some((segment) => segment.block.state !== "Free"));
}

/** The key to the pool's signs. */
export function PoolKey({ model }: { model: Model }) {
  const box = { x: 1, y: 1, width: 24, height: 14 };
  return (
    <ul class="key" aria-label="signs of the block pool">
      {BLOCK_STATES.map(([state, words]) => (
        <li key={state} title={words}>
          <svg width={26} height={16} aria-hidden="true">
            <StateBox {...box} state={state} room="room-none" />
          </svg>
          {state}
        </li>
      ))}
      <li>
        <svg width={16} height={16} aria-hidden="true">
          <path class="touch write" transform="translate(8 8)" d="M-6 -6H6L0 6Z" />
        </svg>
        bytes land
      </li>
      <li>
        <svg width={16} height={16} aria-hidden="true">
          <path class="touch read" transform="translate(8 8)" d="M-6 6H6L0 -6Z" />
        </svg>
        copied out
      </li>
      {model.rooms.slice(0, 6).map((room) => (
        <li key={room}>
          <svg width={16} height={16} aria-hidden="true">
            <StateBox x={1} y={1} width={14} height={14} state="Landed" room={roomClass(model.rooms, room)} />
          </svg>
          room {room}, #{room}
        </li>
      ))}
      {model.rooms.length > 6 && <li>further rooms: these colours again, and their numbers</li>}
    </ul>
  );
}
