/** The page. */

import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { ChoicesPanel } from "./choices.tsx";
import { Details } from "./details.tsx";
import { foldTo, markedSteps, nextOf } from "./fold.ts";
import { Header, Reproduce, Verdict } from "./header.tsx";
import { Help } from "./help.tsx";
import { useKeptFocus, useWide } from "./hooks.ts";
import { commandOf, type Command } from "./keys.ts";
import type { Place } from "./links.ts";
import { Lifecycles } from "./machineview.tsx";
import { modelOf, type Model } from "./model.ts";
import { takenChoice } from "./path.ts";
import { Patterns } from "./poolview.tsx";
import { Sequence, SIGNS } from "./sequence.tsx";
import { afterReturn, afterTaking, afterUndo, choicesHere, edgeBefore, placeOfAddress, settle, showInAddress, shownAt, type World } from "./state.ts";
import { nextTheme, readTheme, showTheme } from "./theme.ts";
import { Timeline } from "./timeline.tsx";
import { Toolbar } from "./toolbar.tsx";
import type { Page } from "./types.ts";
import { stepLine } from "./words.ts";

interface PaneProps {
  page: Page;
  model: Model;
  other: Model | null;
  count: number;
  place: Place;
  id: string;
  go: (step: number) => void;
  /** Stands above the details. */
  extra?: preact.ComponentChildren;
}

/** The parts of a run: drawings, words, lifecycles. */
function Pane({ page, model, other, count, place, id, go, extra }: PaneProps) {
  const { room } = place;
  const here = Math.min(place.step, model.last);
  const step = model.run.steps[here]!;
  const before = useMemo(() => foldTo(model.run, here - 1), [model, here]);
  const now = useMemo(() => foldTo(model.run, here), [model, here]);
  const over = place.step > model.last;
  return (
    <>
      <div class="drawings">
        <Sequence {...{ model, other, room, id, go }} step={place.step} />
        <Timeline {...{ model, count, room, go }} step={place.step} />
      </div>
      <div class="words">
        {extra}
        {over ? (
          <section class="panel details">
            <h3>This run has ended</h3>
            <p class="note">Its last step is {model.last}. What is drawn is how it stood then.</p>
          </section>
        ) : (
          <Details {...{ model, step, before, room }} properties={page.properties} />
        )}
      </div>
      <Lifecycles {...{ model, step, room }} machines={page.machines} snapshot={now} />
    </>
  );
}

function ComparedRun(props: PaneProps & { hidden: boolean; second?: boolean }) {
  return (
    <section class="compared" id={`${props.id}-pane`} aria-label={props.model.run.name} hidden={props.hidden}>
      <header class="pane-head">
        <h2>{props.model.run.name}</h2>
        <Verdict run={props.model.run} />
        {props.second && <Reproduce run={props.model.run} bare />}
      </header>
      <Pane {...props} />
    </section>
  );
}

function Tabs(props: { names: [string, string]; tab: number; set: (tab: number) => void }) {
  return (
    <div class="tabs" role="group" aria-label="which run">
      {props.names.map((name, i) => (
        <button key={i} type="button" aria-pressed={props.tab === i} onClick={() => props.set(i)}>
          {name}
        </button>
      ))}
    </div>
  );
}

function Banner(props: { place: Place; run: (command: Command) => void; leave: () => void }) {
  const { place } = props;
  const n = place.take.length;
  return (
    <p class="banner" role="status">
      <span>
        <b>Your own path</b>: {n} {n === 1 ? "step" : "steps"} from step {place.from} of the recorded run.
      </span>
      <button type="button" onClick={() => props.run("undo")}>
        take back the last one
      </button>
      <button type="button" onClick={props.leave}>
        back to the recorded run
      </button>
    </p>
  );
}

/** What a screen reader says after each move. */
function spoken(model: Model, step: number): string {
  const here = model.run.steps[step];
  if (!here) return `This run ended in step ${model.last}`;
  const kinds = new Set(model.run.marks.filter((mark) => mark.step === step).map((mark) => SIGNS[mark.kind]?.[1] ?? mark.kind));
  return [stepLine(here, model.last), ...kinds].join(". ");
}

/** The step that a jump leads to, or null. */
function jumpTo(model: Model, place: Place, command: Command): number | null {
  const marked = (kind: string, backwards = false): number | null =>
    nextOf(markedSteps(model.run, kind, place.room), place.step, backwards);
  switch (command) {
    case "next":
      return place.step + 1;
    case "previous":
      return place.step - 1;
    case "first":
      return 0;
    case "last":
      return Infinity;
    case "violation":
      return marked("violation") ?? markedSteps(model.run, "violation")[0] ?? null;
    case "no-return":
      return markedSteps(model.run, "no-return")[0] ?? null;
    case "resume":
      return marked("resume");
    case "resume-back":
      return marked("resume", true);
    case "fault":
      return marked("fault");
    case "inferred":
      return marked("inferred");
    case "cycle":
      return markedSteps(model.run, "cycle")[0] ?? null;
    case "fault-back":
      return marked("fault", true);
    default:
      return null;
  }
}

export function App({ world }: { world: World }) {
  const { page, graph } = world;
  const [place, setPlace] = useState(() => placeOfAddress(world));
  const [theme, setTheme] = useState(readTheme);
  const [tab, setTab] = useState(0);
  const filter = useRef<HTMLSelectElement>(null);
  const help = useRef<HTMLDialogElement>(null);
  const wide = useWide(1000);
  const shown = shownAt(world, place);
  const main = modelOf(shown.main);
  const beside = shown.beside ? modelOf(shown.beside) : null;
  const choices = choicesHere(world, place, shown);
  const canCompare = page.runs.length > 1 || shown.own;

  const move = (to: Partial<Place>): void => setPlace((old) => settle(world, { ...old, ...to }));
  const go = (step: number): void => move({ step });
  const run = (command: Command): void => {
    const target = jumpTo(main, place, command);
    if (target !== null) go(Math.max(0, Math.min(target, shown.count - 1)));
    if (command === "filter") filter.current?.focus();
    if (command === "compare" && canCompare) move({ compare: !place.compare });
    if (command === "undo") setPlace((old) => settle(world, afterUndo(old)));
    if (command === "theme") setTheme(nextTheme);
    if (command === "help") help.current?.showModal();
  };
  const latest = useRef(run);
  latest.current = run;

  useLayoutEffect(() => {
    const key = (event: KeyboardEvent): void => {
      const command = commandOf(event);
      if (!command) return;
      event.preventDefault();
      latest.current(command);
    };
    // Not what the address is by now: the page may have written its own place there meanwhile.
    const address = (event: HashChangeEvent): void => setPlace(placeOfAddress(world, new URL(event.newURL).hash));
    document.addEventListener("keydown", key);
    window.addEventListener("hashchange", address);
    return () => {
      document.removeEventListener("keydown", key);
      window.removeEventListener("hashchange", address);
    };
  }, [world]);
  useKeptFocus();
  useEffect(() => showTheme(theme), [theme]);
  useEffect(() => {
    // Chromium takes no more than 200 changes of the address in half a minute.
    const timer = window.setTimeout(() => showInAddress(world, place), 120);
    return () => window.clearTimeout(timer);
  }, [place]);

  const next = graph && !shown.own ? (graph.path[place.step + 1] ?? -1) : -1;
  const taken = graph && choices ? takenChoice(graph, shown.main, place.step, choices, next) : -1;
  const extra = graph && choices && (
    <ChoicesPanel
      {...{ graph, choices, taken }}
      own={shown.own}
      hopeless={world.hopeless}
      lists={world.lists}
      from={edgeBefore(world, place, shown)}
      take={(choice) => setPlace((old) => settle(world, afterTaking(old, choice, taken)))}
    />
  );
  const common = { page, place, go, count: shown.count };
  const names: [string, string] = [main.run.name, beside?.run.name ?? ""];
  return (
    <>
      <Patterns />
      <Header page={page} model={main} go={go} />
      <Toolbar
        {...{ count: shown.count, room: place.room, compare: place.compare, step: place.step }}
        {...{ model: main, canCompare, theme, filter, go, run }}
        setRoom={(room) => move({ room })}
      />
      {shown.own && <Banner place={place} run={run} leave={() => setPlace((old) => settle(world, afterReturn(old)))} />}
      <p class="offscreen" role="status" aria-live="polite">
        {spoken(main, place.step)}
      </p>
      {beside ? (
        <>
          {!wide && <Tabs names={names} tab={tab} set={setTab} />}
          <main class={wide ? "compare" : "compare one"}>
            <ComparedRun key="main" {...common} model={main} other={wide ? beside : null} id="a" extra={extra} hidden={!wide && tab !== 0} />
            <ComparedRun key="beside" {...common} model={beside} other={wide ? main : null} id="b" hidden={!wide && tab !== 1} second />
          </main>
        </>
      ) : (
        <main class="single">
          <Pane key="single" {...common} model={main} other={null} id="a" extra={extra} />
        </main>
      )}
      <Help dialog={help} properties={page.properties} />
    </>
  );
}
