/** What else could happen: the choices that the state graph has at this step. */

import { useLayoutEffect, useRef } from "preact/hooks";
import { NearbyMap } from "./nearbyview.tsx";
import type { Choices } from "./path.ts";
import type { Edge, Graph } from "./types.ts";

export interface ChoicesProps {
  graph: Graph;
  choices: Choices;
  /** The choice that the shown run takes next, -1 if none. */
  taken: number;
  own: boolean;
  /** Nodes from which no run ends well any more; empty where the graph does not know. */
  hopeless: Set<number>;
  lists: Edge[][];
  /** The edge that led here, if it is known. */
  from: Edge | null;
  take: (choice: number) => void;
}

/** Why nothing is on offer. */
function Nothing({ graph, choices }: { graph: Graph; choices: Choices }) {
  if (choices.broken.length)
    return (
      <p class="callout violation">
        <b>✕ {choices.broken.join(", ")} is broken here</b>: nothing follows.
      </p>
    );
  if (choices.ends)
    return (
      <p class="callout good">
        <b>✓ ends well</b>: every request has ended, and nothing is wrong.
      </p>
    );
  if (!choices.known)
    return (
      <p class="note">
        {choices.node < 0
          ? "This state is not in the graph that came with the page."
          : `What follows here is not in the page: its graph goes ${graph.depth} other choices far.`}
      </p>
    );
  return <p class="note">Nothing more can happen.</p>;
}

interface OfferProps {
  edge: Edge;
  letter: string;
  text: string;
  taken: boolean;
  /** No good end can be reached after it. */
  lost: boolean;
  take: () => void;
}

function Offer({ edge, letter, text, taken, lost, take }: OfferProps) {
  const bad = edge.broken.join(", ");
  return (
    <li>
      <button type="button" class={`choice${taken ? " taken" : ""}${bad ? " breaks" : ""}`} data-choice={edge.choice} onClick={take}>
        <span>
          <i aria-hidden="true">{letter}</i> <span class="text">{text}</span>
        </span>
        {taken && <em>this run's next step</em>}
        {lost && !bad && <em class="lost">⚑ no good end after it</em>}
        {bad && <em class="bad">✕ breaks {bad}</em>}
      </button>
    </li>
  );
}

/** The letter of the n-th choice on offer; the map has the same ones. */
const letter = (n: number): string => (n < 26 ? String.fromCharCode(97 + n) : String(n + 1));

export function ChoicesPanel({ graph, choices, taken, own, hopeless, lists, from, take }: ChoicesProps) {
  const order = [...choices.offers.keys()];
  const letterOf = (choice: number): string => letter(order.indexOf(choice));
  const other = graph.choices.map((text, choice) => ({ text, choice })).filter((item) => !choices.offers.has(item.choice));
  const panel = useRef<HTMLElement>(null);
  const clicked = useRef(false);
  const takeThat = (choice: number): void => {
    clicked.current = true;
    take(choice);
  };
  useLayoutEffect(() => {
    // What was clicked is gone now; the focus stays among the choices.
    if (!clicked.current) return;
    clicked.current = false;
    const next = panel.current?.querySelector<HTMLElement>(".choice.taken, .choice:not([aria-disabled])") ?? panel.current;
    next?.focus({ preventScroll: true });
  });
  return (
    <section class="panel choices" aria-label="what else could happen here" ref={panel} tabIndex={-1}>
      <h3>What could happen next</h3>
      <p class="note">
        {graph.complete
          ? `All ${graph.nodes} states of this scenario are in the page.`
          : `${graph.nodes} states are in the page: those near this run.`}{" "}
        {own ? "Backspace takes your last choice back." : "Take another one to leave the recorded run."}
      </p>
      {choices.offers.size === 0 && <Nothing graph={graph} choices={choices} />}
      {choices.offers.size > 0 && choices.ends && <p class="note good">✓ It could end here, and that would be well.</p>}
      {choices.offers.size > 0 && hopeless.has(choices.node) && <p class="note">⚑ Whatever is chosen from here on, no run ends well.</p>}
      <ul class="offers">
        {[...choices.offers.values()].map((edge) => (
          <Offer
            key={edge.choice}
            edge={edge}
            letter={letterOf(edge.choice)}
            text={graph.choices[edge.choice] ?? "?"}
            taken={edge.choice === taken}
            lost={hopeless.has(edge.target) && !hopeless.has(choices.node)}
            take={() => takeThat(edge.choice)}
          />
        ))}
      </ul>
      {choices.offers.size > 0 && <NearbyMap {...{ graph, lists, from, taken, hopeless, letterOf, take }} node={choices.node} />}
      {other.length > 0 && (
        <details open={choices.offers.size > 0 && other.length <= 12}>
          <summary>not possible here ({other.length})</summary>
          <ul class="offers greyed">
            {other.map((item) => (
              <li key={item.choice}>
                <button type="button" class="choice" aria-disabled="true" data-choice={item.choice} tabIndex={-1}>
                  <span>{item.text}</span>
                </button>
              </li>
            ))}
          </ul>
        </details>
      )}
    </section>
  );
}
