/** The head of the page: what run this is, how it ended, and how to make it again. */

import { CopyButton } from "./copy.tsx";
import { markedSteps } from "./fold.ts";
import { alarmsOf, type Model } from "./model.ts";
import type { Page, Run } from "./types.ts";
import { partsOf } from "./words.ts";

const VERDICTS: Record<string, [string, string]> = {
  violated: ["✕", "violated"],
  holds: ["✓", "nothing broken"],
  open: ["…", "nothing broken so far"],
};

export function Verdict({ run }: { run: Run }) {
  const all = [...new Set(run.marks.filter((mark) => mark.kind === "violation").map((mark) => mark.property))];
  // A trace of workers that no run of the protocol explains breaks none of its properties.
  const broken = all.filter((name) => name !== "conforms");
  const refused = all.length > 0 && broken.length === 0;
  const [sign, word] = refused ? ["✕", "refused"] : (VERDICTS[run.verdict] ?? ["?", run.verdict]);
  return (
    <span class={`verdict ${run.verdict}`}>
      <span aria-hidden="true">{sign}</span> {word}
      {broken.filter(Boolean).map((name) => (
        <b key={name}> {name}</b>
      ))}
    </span>
  );
}

/** How the run came about, in a word or two. */
function originWords(run: Run): string {
  if (run.origin === "worker") return "recorded from real workers";
  if (run.origin === "own") return "";
  if (run.origin === "guided") return "the same choices, another version";
  return run.origin ? `found by ${run.origin}` : "";
}

function Facts({ run }: { run: Run }) {
  if (run.facts.length === 0) return null;
  return (
    <details class="facts">
      <summary>
        About this run{originWords(run) && <span class="origin">, {originWords(run)}</span>}
      </summary>
      <dl>
        {run.facts.map(([name, text]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{text}</dd>
          </div>
        ))}
      </dl>
    </details>
  );
}

/** How to make it again; `bare`: without a word before it. */
export function Reproduce({ run, bare }: { run: Run; bare?: boolean }) {
  if (!run.command) return null;
  return (
    <p class="reproduce">
      {!bare && <span>reproduce</span>}
      <code title={run.command}>{run.command}</code>
      <CopyButton text={() => run.command} label="copy" what="the command" />
    </p>
  );
}

/** The property that is broken: its name, all of its text, and what broke it. */
function Broken({ page, run, go }: { page: Page; run: Run; go: (step: number) => void }) {
  const marks = run.marks.filter((mark) => mark.kind === "violation");
  return (
    <>
      {marks.map((mark, i) => (
        <p key={i} class="broken">
          {mark.property && (
            <span>
              <b>{mark.property}</b> {page.properties[mark.property] ?? ""}.{" "}
            </span>
          )}
          <button type="button" class="link" onClick={() => go(mark.step)}>
            Step {mark.step}
          </button>
          : {partsOf(mark.text)[0]}
        </p>
      ))}
    </>
  );
}

export interface HeaderProps {
  page: Page;
  model: Model;
  go: (step: number) => void;
}

export function Header({ page, model, go }: HeaderProps) {
  const run = model.run;
  const own = run.origin === "own";
  const concluded = markedSteps(run, "inferred");
  const title = own ? `${page.runs[0]!.name}: ${run.name}` : page.title;
  return (
    <header class="head">
      <div class="head-line">
        <h1>{title}</h1>
        <Verdict run={run} />
        {!own && !title.startsWith(run.name) && <span class="run-name">{run.name}</span>}
      </div>
      <Broken page={page} run={run} go={go} />
      {alarmsOf(model).map((alarm, i) => (
        <p key={i} class="alarm-line">
          <b class="alarm-word">! {alarm.title}</b>{" "}
          <button type="button" class="link" onClick={() => go(alarm.step)}>
            Step {alarm.step}
          </button>
          , {alarm.text}
        </p>
      ))}
      {run.marks
        .filter((mark) => mark.kind === "cycle")
        .map((mark) => (
          <p key={mark.step} class="cycle-line">
            <b aria-hidden="true">∞</b>{" "}
            <button type="button" class="link" onClick={() => go(mark.step)}>
              Step {mark.step}
            </button>
            : {mark.text}
          </p>
        ))}
      {concluded.length > 0 && (
        <p class="cycle-line">
          <b aria-hidden="true">≈</b> {concluded.length === 1 ? "1 step rests" : `${concluded.length} steps rest`} on what no trace shows and must
          have happened; the first is{" "}
          <button type="button" class="link" onClick={() => go(concluded[0]!)}>
            step {concluded[0]}
          </button>
          .
        </p>
      )}
      <div class="head-line small">
        <Reproduce run={run} />
        <Facts run={run} />
      </div>
    </header>
  );
}
