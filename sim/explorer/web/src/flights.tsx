/** The lines of a sequence diagram: what travels, from lane to lane through the network. */

import { spanOf, type Flight } from "./arrows.ts";
import { roomClass, type Model } from "./model.ts";
import { endY, isDirect, type Columns, type Row } from "./rows.ts";

interface At {
  x: number;
  y: number;
}

/** A flight as it is drawn. `angle` is that of its head, in degrees; `end` is what stands there. */
interface Shape {
  path: string;
  start: At;
  end: At;
  kind: "arrived" | "lost" | "open";
  angle: number;
  hold: At | null;
  label: At & { anchor: "start" | "end" };
}

/** The x of a track; tracks share the middle of the network. */
function trackX(columns: Columns, track: number, tracks: number): number {
  const room = Math.max(20, columns.network.width - 2 * Math.min(56, columns.network.width * 0.28));
  // Where there are more than fit, tracks are used twice.
  const fit = Math.max(1, Math.min(tracks, Math.floor(room / 7)));
  const space = Math.min(16, room / fit);
  const middle = columns.network.x + columns.network.width / 2;
  return middle + ((track % fit) - (fit - 1) / 2) * space;
}

const laneX = (columns: Columns, name: string): number =>
  columns.lanes.get(name) ?? columns.network.x + columns.network.width / 2;

/** A line that leaves sideways, goes down the track, and arrives sideways. */
function curve(start: At, end: At, x: number): string {
  const r = Math.min(16, Math.max(4, (end.y - start.y) / 2));
  const from = start.x === x ? `M${x} ${start.y}` : `M${start.x} ${start.y}C${(start.x + x) / 2} ${start.y} ${x} ${start.y} ${x} ${start.y + r}`;
  const to = end.x === x ? `L${x} ${end.y}` : `L${x} ${end.y - r}C${x} ${end.y} ${(end.x + x) / 2} ${end.y} ${end.x} ${end.y}`;
  return from + to;
}

function shapeOf(flight: Flight, rows: Row[], columns: Columns, model: Model, tracks: number): Shape {
  const [first, last] = spanOf(flight, model.last);
  const x = trackX(columns, model.tracks.get(flight) ?? 0, tracks);
  const arrived = flight.arrived >= 0;
  const kind = arrived ? "arrived" : flight.lost >= 0 ? "lost" : "open";
  const bottom = rows.at(-1)!;
  const endRow = rows[last]!;
  const end: At =
    kind === "open"
      ? { x, y: bottom.top + bottom.height }
      : { x: arrived ? laneX(columns, flight.target) : x, y: endY(endRow, columns, flight.endPlace) };
  const seen = flight.left >= 0 && !flight.copy;
  const start: At = {
    x: seen ? laneX(columns, flight.source) : x,
    y: flight.left >= 0 ? endY(rows[first]!, columns, flight.leftPlace) : end.y - 12,
  };
  const direct = isDirect(flight);
  const path = direct ? `M${start.x} ${start.y}L${end.x} ${end.y}` : curve(start, end, x);
  const rightwards = end.x >= (direct ? start.x : x);
  const angle = direct ? (Math.atan2(end.y - start.y, end.x - start.x) * 180) / Math.PI : rightwards ? 0 : 180;
  const anchor = seen ? (laneX(columns, flight.target) > start.x ? "start" : "end") : "start";
  const hold = flight.held >= 0 ? { x, y: rows[flight.held]!.top + rows[flight.held]!.height / 2 } : null;
  const label = { x: start.x + (anchor === "start" ? 7 : -7), y: start.y - 4, anchor: anchor as "start" | "end" };
  return { path, start, end, kind, angle, hold, label };
}

function Head(props: { shape: Shape; bytes: boolean }) {
  const { end, angle, kind } = props.shape;
  if (kind === "open") return null;
  const place = `translate(${end.x} ${end.y})`;
  if (kind === "lost") return <path class="lost-cross" transform={place} d="M-5 -5L5 5M-5 5L5 -5" />;
  const d = props.bytes ? "M1 0L-11 -6L-11 6Z" : "M-8 -4.5L0 0L-8 4.5";
  return <path class={props.bytes ? "head-bytes" : "head"} transform={`${place} rotate(${angle})`} d={d} />;
}

/** In words, for a pointer that rests on the line. */
function tip(flight: Flight): string {
  const part = (words: string, step: number): string => (step >= 0 ? `\n${words} in step ${step}` : "");
  const open = flight.arrived < 0 && flight.lost < 0 ? "\nstill under way at the end" : "";
  const left = flight.copy ? part("doubled by the network", flight.left) : part("left", flight.left);
  return (
    `${flight.text || flight.label}\n${flight.source} → ${flight.target}` +
    `${left}${part("held back", flight.held)}${part("arrived", flight.arrived)}${part("lost", flight.lost)}${open}`
  );
}

interface FlightProps {
  /** Its room, where there are several. */
  mark: string;
  flight: Flight;
  shape: Shape;
  room: string;
  state: string;
  go: (step: number) => void;
}

function FlightLine({ flight, mark, shape, room, state, go }: FlightProps) {
  const bytes = flight.what === "bytes";
  const classes = ["flight", bytes ? "bytes" : "message", room, state, shape.kind];
  if (flight.copy) classes.push("copy");
  if (flight.held >= 0) classes.push("held");
  const prefix = flight.copy ? "copy: " : "";
  const suffix = shape.kind === "lost" ? " (lost)" : "";
  return (
    <g class={classes.join(" ")} onClick={() => go(Math.max(0, flight.left))}>
      <title>{tip(flight)}</title>
      <path class="hit" d={shape.path} />
      {bytes && <path class="ribbon" d={shape.path} />}
      <path class="line" d={shape.path} />
      {flight.copy && <path class="diamond" transform={`translate(${shape.start.x} ${shape.start.y})`} d="M0 -5L5 0L0 5L-5 0Z" />}
      {flight.left < 0 && <circle class="unseen" cx={shape.start.x} cy={shape.start.y} r={3} />}
      {shape.hold && <path class="bars" transform={`translate(${shape.hold.x} ${shape.hold.y})`} d="M-4 -5V5M4 -5V5" />}
      <Head shape={shape} bytes={bytes} />
      <text x={shape.label.x} y={shape.label.y} text-anchor={shape.label.anchor}>
        {prefix + flight.label + suffix}
        {mark && <tspan class="room-mark">{` ${mark}`}</tspan>}
      </text>
    </g>
  );
}

export interface FlightsProps {
  model: Model;
  rows: Row[];
  columns: Columns;
  room: number | null;
  step: number;
  /** The first and the last row in view. */
  window: [number, number];
  go: (step: number) => void;
}

/** The lines that cross the rows in view. */
export function Flights({ model, rows, columns, room, step, window, go }: FlightsProps) {
  const tracks = Math.max(0, ...model.tracks.values()) + 1;
  const seen = model.flights.filter((flight) => {
    if (room !== null && flight.room !== room) return false;
    const [first, last] = spanOf(flight, model.last);
    return first <= window[1] && last >= window[0];
  });
  const stateOf = (flight: Flight): string => {
    const [first, last] = spanOf(flight, Infinity);
    if (first > step) return "future";
    return first === step || last === step ? "now" : "past";
  };
  return (
    <g>
      {seen.map((flight) => (
        <FlightLine
          key={flight.id}
          flight={flight}
          mark={model.rooms.length > 1 && flight.room >= 0 ? `#${flight.room}` : ""}
          shape={shapeOf(flight, rows, columns, model, tracks)}
          room={roomClass(model.rooms, flight.room)}
          state={stateOf(flight)}
          go={go}
        />
      ))}
    </g>
  );
}
