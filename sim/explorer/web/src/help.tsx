/** The help: keys, signs, and the licences of what the page is made with. */

import type { RefObject } from "preact";
import { KEYS } from "./keys.ts";
import { SIGNS } from "./sequence.tsx";

/** What `html.py` put into the file about the bundled libraries. */
const licences = (): string =>
  (document.getElementById("licences") as HTMLTemplateElement | null)?.content.textContent?.trim() ?? "";

export function Help({ dialog }: { dialog: RefObject<HTMLDialogElement | null> }) {
  const text = licences();
  return (
    <dialog ref={dialog} class="help" aria-label="help">
      <form method="dialog">
        <h2>Keys</h2>
        <dl>
          {KEYS.map(([keys, words]) => (
            <div key={keys}>
              <dt>
                <kbd>{keys}</kbd>
              </dt>
              <dd>{words}</dd>
            </div>
          ))}
        </dl>
        <h2>Signs</h2>
        <dl>
          {Object.entries(SIGNS).map(([kind, [sign, words]]) => (
            <div key={kind}>
              <dt>
                <b class={`sign ${kind}`}>{sign}</b>
              </dt>
              <dd>{words}</dd>
            </div>
          ))}
          <div>
            <dt>thin line</dt>
            <dd>a message; dotted: held back, or a copy that the network made (◆); ✕: lost</dd>
          </div>
          <div>
            <dt>thick line</dt>
            <dd>bytes of a write</dd>
          </div>
        </dl>
        {text && (
          <details>
            <summary>Licences of the libraries in this page</summary>
            <pre>{text}</pre>
          </details>
        )}
        <button type="submit">close</button>
      </form>
    </dialog>
  );
}
