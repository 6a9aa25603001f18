/** The watermark curve of one room at one rank. */

import { scaleLinear } from "d3-scale";
import { area, curveStepAfter, line } from "d3-shape";
import { shoutWidth } from "./poolview.tsx";
import type { Scale } from "./scale.ts";
import { heightOf, pointAt, type Point, type Series } from "./series.ts";

export const CURVE_HEIGHT = 84;

const LINES = ["granted", "landed", "watermark", "delivered"] as const;
type Name = (typeof LINES)[number];

interface Dot {
  x: number;
  value: Record<Name, number>;
}

/** The points in view, and one on either side. A value holds from the left edge of its step's column. */
function dots(series: Series, scale: Scale, [first, last]: [number, number]): Dot[] {
  const start = Math.max(0, series.points.findLastIndex((point) => point.step <= first));
  const inside = series.points.slice(start).filter((point) => point.step <= last + 1);
  const out: Dot[] = inside.map((point) => ({ x: scale.left(Math.max(point.step, 0)), value: point }));
  const end = out.at(-1);
  if (end) out.push({ x: scale.left(Math.min(last + 1, scale.count)), value: end.value });
  return out;
}

/** What is ahead of the bytes that have landed: the watermark, or what was copied out. */
const ahead = (point: Record<Name, number>): number => Math.max(point.watermark, point.delivered);

/** The words for a curve that runs ahead. */
export function aheadWords(point: Point | null): string {
  if (!point) return "";
  const parts = [];
  if (point.watermark > point.landed) parts.push("WATERMARK AHEAD OF BYTES");
  if (point.delivered > point.landed) parts.push("COPIED OUT TOO EARLY");
  return parts.join(", ");
}

export interface CurveProps {
  series: Series;
  scale: Scale;
  y: number;
  view: [number, number];
  step: number;
  room: string;
}

export function Curve({ series, scale, y, view, step, room }: CurveProps) {
  const up = scaleLinear([0, heightOf(series)], [y + CURVE_HEIGHT - 12, y + 14]);
  const data = dots(series, scale, view);
  const path = (name: Name): string =>
    line<Dot>().x((dot) => dot.x).y((dot) => up(dot.value[name])).curve(curveStepAfter)(data) ?? "";
  const between = (low: (value: Dot["value"]) => number, high: (value: Dot["value"]) => number): string =>
    area<Dot>().x((dot) => dot.x).y0((dot) => up(low(dot.value))).y1((dot) => up(high(dot.value))).curve(curveStepAfter)(data) ?? "";
  const wrong = data.find((dot) => ahead(dot.value) > dot.value.landed);
  const now = pointAt(series, step);
  const first = series.points.find((point) => ahead(point) > point.landed) ?? null;
  const words = aheadWords(first);
  const wide = shoutWidth(words) + 14;
  const left = first ? scale.left(first.step) - wide - 6 : 0;
  const tagX = left >= 0 || !first ? left : Math.max(2, Math.min(scale.total - wide - 2, scale.left(first.step + 1) + 6));
  return (
    <g class={`curve ${room}`}>
      <line class="base" x1={0} x2={scale.width} y1={up(0)} y2={up(0)} />
      {series.tokens > 0 && <line class="whole" x1={0} x2={scale.width} y1={up(series.tokens)} y2={up(series.tokens)} />}
      <path class="area-landed" d={between(() => 0, (value) => value.landed)} />
      {wrong && <path class="area-ahead" fill="url(#p-alarm)" d={between((value) => value.landed, (value) => Math.max(value.landed, ahead(value)))} />}
      {LINES.map((name) => (
        <path key={name} class={`line-${name}`} d={path(name)} />
      ))}
      {first && (
        <g class="alarm">
          <rect class="alarm-tag" x={tagX} y={y + 16} width={wide} height={16} rx={3} />
          <text class="alarm-words" x={tagX + wide / 2} y={y + 28} text-anchor="middle">{words}</text>
        </g>
      )}
      {now && LINES.map((name) => <circle key={name} class={`dot-${name}`} cx={scale.middle(step)} cy={up(now[name])} r={3.2} />)}
    </g>
  );
}

/** What a curve says at a step. */
export function curveWords(series: Series, step: number): string {
  const now = pointAt(series, step);
  const of = series.tokens >= 0 ? ` of ${series.tokens}` : "";
  if (!now) return "nothing yet";
  return `granted ${now.granted}, landed ${now.landed}, watermark ${now.watermark}, delivered ${now.delivered}${of}`;
}

/** The key to the curve's lines. */
export function CurveKey() {
  return (
    <ul class="key" aria-label="lines of the watermark curve">
      {LINES.map((name) => (
        <li key={name}>
          <svg width={28} height={16} class="curve room-none" aria-hidden="true">
            {name === "landed" && <rect class="area-landed" x={0} y={8} width={28} height={8} />}
            <path class={`line-${name}`} d="M0 8H28" />
          </svg>
          {name}
        </li>
      ))}
    </ul>
  );
}
