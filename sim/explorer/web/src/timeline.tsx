/** What is drawn over time from left to right: the block pool, and under it the watermark curves. */

import { useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { Curve, CURVE_HEIGHT, CurveKey, curveWords } from "./curve.tsx";
import { blockKey } from "./fold.ts";
import { groupBy } from "./group.ts";
import { usePrinting, useView, useWidth } from "./hooks.ts";
import { roomClass, type Model } from "./model.ts";
import { AlarmView, PoolKey, PoolRowView, shownRows, tagWidth } from "./poolview.tsx";
import { stepsInView, timeScale, type Scale } from "./scale.ts";
import { PRINTED_MAX, SIGNS } from "./sequence.tsx";

const HEAD = 30;
/** The width of the rows' names. */
const gutterOf = (width: number): number => (width < 480 ? 58 : 92);

/** The steps with their marks; every so many have their number. */
function StepHeads({ model, scale, view, step }: { model: Model; scale: Scale; view: [number, number]; step: number }) {
  const space = 12 + String(scale.count).length * 7;
  const every = [1, 2, 5, 10, 20, 50, 100].find((n) => n * scale.column >= space) ?? 100;
  const numbers = [];
  for (let i = view[0]; i <= view[1]; i++) if (i % every === 0 || i === step) numbers.push(i);
  const marks = model.run.marks.filter((mark) => mark.step >= view[0] && mark.step <= view[1]);
  const at = groupBy(marks, (mark) => mark.step);
  return (
    <>
      {numbers
        .filter((i) => i === step || Math.abs(i - step) * scale.column >= space)
        .map((i) => (
          <text key={i} class={i === step ? "step-number now" : "step-number"} x={Math.min(scale.middle(i), scale.total - space / 2 + 4)} y={HEAD - 5} text-anchor="middle">
            {i}
          </text>
        ))}
      {[...at].map(([i, list]) => (
        <text key={`m${i}`} class="step-sign" x={scale.middle(i)} y={12} text-anchor="middle">
          <title>{list.map((mark) => mark.text).join("\n")}</title>
          {[...new Set(list.map((mark) => mark.kind))].map((kind) => (
            <tspan key={kind} class={`sign ${kind}`}>
              {SIGNS[kind]?.[0] ?? "•"}
            </tspan>
          ))}
        </text>
      ))}
    </>
  );
}

/** Where everything stands from top to bottom. */
function places(model: Model, room: number | null) {
  const rows = shownRows(model, room);
  const height = rows.length <= 16 ? 22 : rows.length <= 48 ? 18 : 14;
  const series = model.series.filter((item) => room === null || item.room === room).slice(0, 24);
  const pool = rows.length * (height + 2);
  return { rows, height, series, curves: pool + 12, total: pool + 12 + series.length * (CURVE_HEIGHT + 4) };
}

export interface TimelineProps {
  model: Model;
  /** How many steps to draw, which may be more than the run has. */
  count: number;
  step: number;
  room: number | null;
  go: (step: number) => void;
}

type Places = ReturnType<typeof places>;

function Gutter({ model, place, step, width }: { model: Model; place: Places; step: number; width: number }) {
  const several = model.run.pools.length > 1;
  const bad = new Set(model.findings.map(blockKey));
  return (
    <svg class="gutter" width={width} height={place.total} aria-hidden="true">
      <rect class="ground" width={width} height={place.total} />
      {place.rows.map((row, i) => (
        <text key={blockKey(row)} class={bad.has(blockKey(row)) ? "bad" : ""} x={width - 8} y={i * (place.height + 2) + place.height / 2 + 4} text-anchor="end">
          {width < 80 ? (several ? `r${row.rank} ` : "") : several ? `rank ${row.rank} ` : "block "}b{row.block}
        </text>
      ))}
      {place.series.map((item, i) => {
        const y = place.curves + i * (CURVE_HEIGHT + 4);
        return (
          <g key={`${item.rank}/${item.room}`}>
            <title>{curveWords(item, step)}</title>
            <text class="strong" x={width - 8} y={y + 40} text-anchor="end">room {item.room}</text>
            {several && <text x={width - 8} y={y + 55} text-anchor="end">rank {item.rank}</text>}
            {item.tokens > 0 && <text class="tick" x={width - 4} y={y + 18} text-anchor="end">{item.tokens}</text>}
            <text class="tick" x={width - 4} y={y + CURVE_HEIGHT - 9} text-anchor="end">0</text>
          </g>
        );
      })}
    </svg>
  );
}

/** The same in words, for those who do not see it. */
function inWords(model: Model, place: Places, step: number): string {
  const blocks = place.rows.map((row) => {
    const segment = row.segments.find((item) => item.first <= step && step <= item.last);
    const block = segment?.block;
    return block ? `rank ${row.rank} block ${row.block} ${block.state}${block.room >= 0 ? ` for room ${block.room}` : ""}` : "";
  });
  const curves = place.series.map((item) => `room ${item.room} rank ${item.rank}: ${curveWords(item, step)}`);
  return `After step ${Math.min(step, model.last)}: ${[...blocks, ...curves].filter(Boolean).join("; ")}.`;
}

export function Timeline({ model, count, step, room, go }: TimelineProps) {
  const scroller = useRef<HTMLDivElement>(null);
  const width = useWidth(scroller);
  const gutter = gutterOf(width);
  const scale = useMemo(() => {
    const available = Math.max(200, width - gutter - 2);
    const plain = timeScale(count, available);
    const end = Math.max(0, ...model.findings.map((item) => plain.left(item.step + 1) + tagWidth(item) + 8));
    return end <= plain.width ? plain : timeScale(count, available, Math.max(...model.findings.map(tagWidth)) + 12);
  }, [count, width, model]);
  const place = useMemo(() => places(model, room), [model, room]);
  const view = useView(scroller, model);
  const inView: [number, number] = usePrinting() && count <= PRINTED_MAX ? [0, count - 1] : stepsInView(scale, view.left, view.width - gutter);
  const here = Math.min(step, model.last);
  const seen: [number, number] = [inView[0], Math.min(inView[1], model.last)];

  useLayoutEffect(() => {
    const element = scroller.current;
    if (!element) return;
    const left = scale.left(here) - 2 * scale.column;
    const right = scale.left(here + 1) + 2 * scale.column - (element.clientWidth - gutter);
    if (element.scrollLeft > left) element.scrollLeft = Math.max(0, left);
    else if (element.scrollLeft < right) element.scrollLeft = right;
  }, [here, scale]);

  const click = (event: MouseEvent): void => {
    const box = (event.currentTarget as Element).getBoundingClientRect();
    go(scale.stepAt(event.clientX - box.left));
  };
  const rowY = (index: number): number => index * (place.height + 2);
  const shown = new Map(place.rows.map((row, i) => [`${row.rank}/${row.block}`, i]));
  return (
    <section class="panel timeline" aria-label={`block pool and watermark of ${model.run.name}`}>
      <h3>Block pool and watermark</h3>
      <p class="offscreen">{inWords(model, place, step)}</p>
      <div class="time-scroll" ref={scroller} tabIndex={-1}>
        <div class="time-head" style={{ width: `${gutter + scale.total}px` }}>
          <svg class="gutter" width={gutter} height={HEAD} aria-hidden="true">
            <rect class="ground" width={gutter} height={HEAD} />
            <text class="tick" x={gutter - 8} y={HEAD - 5} text-anchor="end">step</text>
          </svg>
          <svg width={scale.total} height={HEAD} onClick={click} aria-hidden="true">
            <rect class="ground" width={scale.total} height={HEAD} />
            <StepHeads model={model} scale={scale} view={inView} step={here} />
          </svg>
        </div>
        <div class="time-body" style={{ width: `${gutter + scale.total}px` }}>
          <Gutter model={model} place={place} step={step} width={gutter} />
          <svg class="drawing" width={scale.total} height={place.total} onClick={click} aria-hidden="true">
            <rect class="ground" width={scale.total} height={place.total} />
            <rect class="now-column" x={scale.left(here)} width={scale.column} height={place.total} />
            {place.rows.map((row, i) => (
              <PoolRowView key={`${row.rank}/${row.block}`} {...{ row, model, scale }} y={rowY(i)} height={place.height} view={seen} from={view.left} only={room} />
            ))}
            {place.series.map((item, i) => (
              <Curve
                key={`${item.rank}/${item.room}`}
                series={item}
                {...{ scale, step: here }}
                y={place.curves + i * (CURVE_HEIGHT + 4)}
                view={seen}
                room={roomClass(model.rooms, item.room)}
              />
            ))}
            <rect class="now-frame" x={scale.left(here) + 0.5} y={0.5} width={scale.column - 1} height={place.total - 1} />
            {model.findings
              .filter((item) => shown.has(`${item.rank}/${item.block}`) && item.step <= seen[1] && Math.max(item.step, item.written) >= seen[0])
              .map((item, i) => (
                <AlarmView key={i} finding={item} scale={scale} y={rowY(shown.get(`${item.rank}/${item.block}`)!)} height={place.height} />
              ))}
          </svg>
        </div>
      </div>
      <div class="keys">
        <PoolKey model={model} />
        <CurveKey />
      </div>
    </section>
  );
}
