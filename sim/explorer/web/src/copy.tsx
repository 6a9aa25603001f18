/** A button that copies text, from a file as well. */

import { useRef, useState } from "preact/hooks";

/** Copies by way of a hidden field, where the clipboard's own interface is not to be had. */
function copyByField(text: string): boolean {
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "offscreen";
  field.setAttribute("readonly", "");
  document.body.append(field);
  const focused = document.activeElement as HTMLElement | null;
  field.select();
  let done = false;
  try {
    done = document.execCommand("copy");
  } catch {
    done = false;
  }
  field.remove();
  focused?.focus();
  return done;
}

/** Whether the text is in the clipboard now. */
export async function copyText(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyByField(text);
  }
}

export function CopyButton(props: { text: () => string; label: string; what: string }) {
  const [said, setSaid] = useState("");
  const timer = useRef(0);
  const click = async (): Promise<void> => {
    const done = await copyText(props.text());
    setSaid(done ? "copied" : "select the text and press Ctrl C");
    window.clearTimeout(timer.current);
    timer.current = window.setTimeout(() => setSaid(""), 2500);
  };
  return (
    <>
      <button type="button" class="copy" onClick={() => void click()} aria-label={`copy ${props.what}`}>
        {props.label}
      </button>
      <span class="copied" role="status">
        {said}
      </span>
    </>
  );
}
