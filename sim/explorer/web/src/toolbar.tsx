/** The buttons, and the strip of marks with its slider. */

import type { RefObject } from "preact";
import { CopyButton } from "./copy.tsx";
import { markedSteps, nextOf } from "./fold.ts";
import type { Command } from "./keys.ts";
import type { Model } from "./model.ts";
import { SIGNS } from "./sequence.tsx";

export type Theme = "auto" | "light" | "dark";

export interface ToolbarProps {
  model: Model;
  count: number;
  step: number;
  room: number | null;
  compare: boolean;
  canCompare: boolean;
  theme: Theme;
  filter: RefObject<HTMLSelectElement | null>;
  go: (step: number) => void;
  setRoom: (room: number | null) => void;
  run: (command: Command) => void;
}

function Marks({ model, count, step }: Pick<ToolbarProps, "model" | "count" | "step">) {
  const last = Math.max(1, count - 1);
  const seen = new Set<string>();
  const marks = model.run.marks.filter((mark) => {
    const key = `${mark.kind}/${Math.round((mark.step / last) * 300)}`;
    return !seen.has(key) && seen.add(key);
  });
  return (
    <svg class="ticks" aria-hidden="true" preserveAspectRatio="none" viewBox={`0 0 ${last} 10`}>
      {marks.map((mark, i) => (
        <line key={i} class={`tick-${mark.kind}`} x1={mark.step} x2={mark.step} y1={mark.kind === "violation" || mark.kind === "no-return" ? 0 : 4} y2={10} vector-effect="non-scaling-stroke">
          <title>{mark.text}</title>
        </line>
      ))}
      <line class="tick-now" x1={step} x2={step} y1={0} y2={10} vector-effect="non-scaling-stroke" />
    </svg>
  );
}

function Jump(props: { kind: string; label: string; keys: string; target: number | null; command: Command; run: (command: Command) => void }) {
  const [sign, name] = SIGNS[props.kind] ?? ["•", props.label];
  const words = props.kind === "no-return" ? `${name}: after it, every continuation fails` : name === props.kind ? props.label : name;
  return (
    <button
      type="button"
      class={`jump ${props.kind}`}
      aria-disabled={props.target === null ? "true" : undefined}
      title={`${words} (${props.keys})`}
      aria-label={props.label}
      aria-keyshortcuts={props.keys}
      onClick={() => props.run(props.command)}
    >
      <b class={`sign ${props.kind}`} aria-hidden="true">
        {sign}
      </b>
      <span>{props.label}</span>
    </button>
  );
}

function Jumps({ model, step, room, run }: Pick<ToolbarProps, "model" | "step" | "room" | "run">) {
  const target = (kind: string, backwards = false): number | null => {
    const steps = markedSteps(model.run, kind, room);
    return kind === "violation" || kind === "no-return" || kind === "cycle" ? (steps[0] ?? null) : nextOf(steps, step, backwards);
  };
  const has = (kind: string): boolean => model.run.marks.some((mark) => mark.kind === kind);
  return (
    <div class="group" role="group" aria-label="jump to">
      <Jump kind="violation" label="violation" keys="v" target={target("violation")} command="violation" run={run} />
      <Jump kind="no-return" label="no return" keys="p" target={target("no-return")} command="no-return" run={run} />
      <Jump kind="resume" label="next resume" keys="n" target={target("resume")} command="resume" run={run} />
      <Jump kind="fault" label="next fault" keys="f" target={target("fault")} command="fault" run={run} />
      {has("inferred") && <Jump kind="inferred" label="next concluded" keys="i" target={target("inferred")} command="inferred" run={run} />}
      {has("cycle") && <Jump kind="cycle" label="cycle" keys="y" target={target("cycle")} command="cycle" run={run} />}
    </div>
  );
}

function Moves({ step, last, run }: { step: number; last: number; run: (command: Command) => void }) {
  const button = (command: Command, sign: string, label: string, keys: string, off: boolean) => (
    <button type="button" aria-disabled={off ? "true" : undefined} title={`${label} (${keys})`} aria-label={label} onClick={() => run(command)}>
      {sign}
    </button>
  );
  return (
    <div class="group" role="group" aria-label="steps">
      {button("first", "⇤", "first step", "Home", step === 0)}
      {button("previous", "←", "previous step", "left arrow", step === 0)}
      <output class="where" aria-hidden="true">
        <b>{step}</b> / {last}
      </output>
      {button("next", "→", "next step", "right arrow", step === last)}
      {button("last", "⇥", "last step", "End", step === last)}
    </div>
  );
}

const THEMES: Record<Theme, [string, string]> = { auto: ["◐", "as the system says"], light: ["☀", "light"], dark: ["☾", "dark"] };

function Options(props: ToolbarProps) {
  const { model, room, compare, canCompare, theme, filter, setRoom, run } = props;
  const change = (value: string): void => setRoom(value === "" ? null : Number(value));
  const [sign, words] = THEMES[theme];
  return (
    <div class="group options">
      <label class="filter">
        <span>room</span>
        <select ref={filter} value={room === null ? "" : String(room)} onChange={(event) => change(event.currentTarget.value)}>
          <option value="">all</option>
          {model.run.requests.map((request) => (
            <option key={request.room} value={String(request.room)}>
              {request.room}
              {request.tokens >= 0 ? ` (${request.tokens} tokens)` : ""}
            </option>
          ))}
        </select>
      </label>
      {canCompare && (
        <button type="button" aria-pressed={compare} onClick={() => run("compare")} title="two runs side by side (c)">
          compare
        </button>
      )}
      <CopyButton text={() => location.href} label="copy link" what="a link to this step" />
      <button type="button" onClick={() => run("theme")} title={`colours: ${words} (d)`} aria-label={`colours: ${words}`}>
        {sign}
      </button>
      <button type="button" onClick={() => run("help")} title="keys, signs, short forms (?)" aria-label="help: keys">
        ?<span class="wide-only"> help</span>
      </button>
    </div>
  );
}

export function Toolbar(props: ToolbarProps) {
  const { model, count, step, run, go, room } = props;
  return (
    <nav class="toolbar" aria-label="steps of the run">
      <div class="bar">
        <Moves step={step} last={count - 1} run={run} />
        <Jumps model={model} step={step} room={room} run={run} />
        <Options {...props} />
      </div>
      <div class="strip">
        <Marks model={model} count={count} step={step} />
        <input
          type="range"
          min={0}
          max={count - 1}
          value={step}
          aria-label="step"
          onInput={(event) => go(Number(event.currentTarget.value))}
        />
      </div>
    </nav>
  );
}
