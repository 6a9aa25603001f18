/** Joins the two ends of what travels between lanes. */

import type { Arrow, Run } from "./types.ts";

/** Something on its way. A step is -1 where that did not happen (or nobody saw it). */
export interface Flight {
  /** Its place among the flights of its run. */
  id: number;
  what: string;
  source: string;
  target: string;
  room: number;
  label: string;
  text: string;
  /** The step in which it left its lane, or the network made a copy of it. */
  left: number;
  /** It is a duplicate: it begins in the network. */
  copy: boolean;
  held: number;
  arrived: number;
  lost: number;
  /** The place of its ends in their steps' lists. */
  leftPlace: number;
  endPlace: number;
}

const keyOf = (arrow: Arrow): string => JSON.stringify([arrow.what, arrow.source, arrow.target, arrow.text]);

function begin(arrow: Arrow, step: number, place: number, id: number): Flight {
  const { what, source, target, room, label, text } = arrow;
  const seen = arrow.end === "leave" || arrow.end === "copy";
  return {
    ...{ id, what, source, target, room, label, text },
    left: seen ? step : -1,
    copy: arrow.end === "copy",
    held: -1,
    arrived: -1,
    lost: -1,
    leftPlace: seen ? place : -1,
    endPlace: -1,
  };
}

/** Ends or marks the earliest open flight that an arrow's end belongs to; one that nobody saw leave begins here. */
function apply(flights: Flight[], open: Map<string, Flight[]>, arrow: Arrow, step: number, place: number): void {
  const waiting = open.get(keyOf(arrow)) ?? [];
  if (arrow.end === "leave" || arrow.end === "copy" || waiting.length === 0) {
    const flight = begin(arrow, step, place, flights.length);
    flights.push(flight);
    waiting.push(flight);
    open.set(keyOf(arrow), waiting);
    if (flight.left >= 0) return;
  }
  const flight = (arrow.end === "hold" && waiting.find((item) => item.held < 0)) || waiting[0]!;
  if (arrow.end === "hold") flight.held = step;
  else {
    if (arrow.end === "lose") flight.lost = step;
    else flight.arrived = step;
    flight.endPlace = place;
    waiting.splice(waiting.indexOf(flight), 1);
  }
}

/** Everything that travelled in a run, in the order in which it left. */
export function flightsOf(run: Run): Flight[] {
  const flights: Flight[] = [];
  const open = new Map<string, Flight[]>();
  for (const step of run.steps)
    step.arrows.forEach((arrow, place) => apply(flights, open, arrow, step.number, place));
  return flights;
}

/** The first and the last step that a flight is drawn in; `last` is the run's. */
export function spanOf(flight: Flight, last: number): [number, number] {
  const ends = [flight.arrived, flight.lost].filter((step) => step >= 0);
  const end = ends.length ? Math.max(...ends) : last;
  const first = flight.left >= 0 ? flight.left : flight.held >= 0 ? flight.held : end;
  return [first, end];
}

/** What is under way after a step. */
export function underWay(flights: Flight[], step: number): Flight[] {
  return flights.filter((flight) => {
    const [first, end] = spanOf(flight, Infinity);
    return first <= step && step < end;
  });
}
