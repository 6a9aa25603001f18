/** The help: how to read the short forms, keys, signs, and the licences of what the page is made with. */

import type { RefObject } from "preact";
import { KEYS } from "./keys.ts";
import { BLOCK_STATES, StateBox } from "./poolview.tsx";
import { SIGNS } from "./sequence.tsx";

/** What `html.py` put into the file about the bundled libraries. */
const licences = (): string =>
  (document.getElementById("licences") as HTMLTemplateElement | null)?.content.textContent?.trim() ?? "";

/** The short forms, in the order in which one meets them. */
const WORDS: [string, string][] = [
  ["room 1, #1", "a request; everything about it bears this number"],
  ["[8,16)", "tokens 8 to 15 of a request: the end is not included"],
  ["b2", "landing block 2: a piece of the receiver's memory that the sender writes into. r0 b2: that of receiver rank 0"],
  ["grant 1, seq 1", "the receiver's second permission to write (the first is 0): so many tokens, into these blocks"],
  ["resume", "any grant after the first: the request did not fit into the blocks that were free"],
  ["GRANT 1 [8,16)", "the message with grant 1, for tokens 8 to 15"],
  ["STATUS 0 8 of 24", "the message that closes grant 0: the bytes of 8 of 24 tokens are there"],
  ["@8", "the receiver's watermark is 8: the sender has vouched for tokens 0 to 7, so these may be read"],
  ["generation", "how often a block has been freed; who refers to an older one is refused"],
  ["epoch 1.2", "which attempt at a room: the number of the process, and of the attempt in it"],
  ["copy, delivered", "the blocks are copied out, to whoever wanted the data; then they are free again"],
  ["WRONG", "what was copied out is not what the sender has"],
  ["poison", "what memory holds where nothing was written yet"],
  ["TRESPASS", "bytes landed in a block that is not open to them"],
  ["I1 to I8, L1", "the properties that are checked; below, in words"],
];

function Entries({ items }: { items: [preact.ComponentChildren, preact.ComponentChildren][] }) {
  return (
    <dl>
      {items.map(([name, words], i) => (
        <div key={i}>
          <dt>{name}</dt>
          <dd>{words}</dd>
        </div>
      ))}
    </dl>
  );
}

const stateSign = (state: string) => (
  <span class="state-name">
    <svg width={26} height={16} aria-hidden="true">
      <StateBox x={1} y={1} width={24} height={14} state={state} room="room-none" />
    </svg>
    {state}
  </span>
);

export function Help({ dialog, properties }: { dialog: RefObject<HTMLDialogElement | null>; properties: Record<string, string> }) {
  const text = licences();
  return (
    <dialog ref={dialog} class="help" aria-label="help">
      <form method="dialog">
        <button type="submit" class="close">
          close
        </button>
        <h2>How to read it</h2>
        <p>
          A step is a row of the sequence diagram and a column of the block pool; the highlighted one is shown in words. A sender writes a
          request's bytes straight into blocks of the receiver. Where these are too few, the receiver copies out what has landed, frees the
          blocks, and grants again.
        </p>
        <Entries items={WORDS.map(([name, words]) => [<code>{name}</code>, words])} />
        <h2>Keys</h2>
        <Entries items={KEYS.map(([keys, words]) => [<kbd>{keys}</kbd>, words])} />
        <h2>Signs</h2>
        <Entries
          items={[
            ...Object.entries(SIGNS).map(([kind, [sign, words]]): [preact.ComponentChildren, string] => [<b class={`sign ${kind}`}>{sign}</b>, words]),
            ["thin line", "a message; dotted: held back, or a copy that the network made (◆); ✕: lost; dash-dotted: still under way at the end"],
            ["thick line", "bytes of a write"],
            ...BLOCK_STATES.map(([state, words]): [preact.ComponentChildren, string] => [stateSign(state), words]),
            ["▼", "bytes land in the block"],
            ["▲", "the block is copied out"],
          ]}
        />
        <details>
          <summary>The properties</summary>
          <Entries items={Object.entries(properties).map(([name, words]) => [<b>{name}</b>, words])} />
        </details>
        {text && (
          <details>
            <summary>Licences of the libraries in this page</summary>
            <pre>{text}</pre>
          </details>
        )}
      </form>
    </dialog>
  );
}
