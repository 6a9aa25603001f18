/** The keys, and what they do. */

export type Command =
  | "next"
  | "previous"
  | "first"
  | "last"
  | "violation"
  | "resume"
  | "resume-back"
  | "no-return"
  | "fault"
  | "fault-back"
  | "inferred"
  | "cycle"
  | "filter"
  | "compare"
  | "undo"
  | "theme"
  | "help";

/** For the help: keys, and words. */
export const KEYS: [string, string][] = [
  ["→ ↓", "next step"],
  ["← ↑", "previous step"],
  ["Home End", "first step, last step"],
  ["v", "the violation"],
  ["n, Shift n", "next resume, previous resume"],
  ["p", "point of no return"],
  ["f, Shift f", "next fault, previous fault"],
  ["i", "next step that no trace shows"],
  ["y", "where what repeats for ever begins"],
  ["r or /", "choose a room"],
  ["c", "compare two runs, or stop"],
  ["Backspace", "take back your last choice"],
  ["d", "light, dark, or as the system says"],
  ["?", "this list"],
];

const COMMANDS: Record<string, Command> = {
  ArrowRight: "next",
  ArrowDown: "next",
  ArrowLeft: "previous",
  ArrowUp: "previous",
  Home: "first",
  End: "last",
  v: "violation",
  n: "resume",
  N: "resume-back",
  p: "no-return",
  f: "fault",
  F: "fault-back",
  i: "inferred",
  y: "cycle",
  r: "filter",
  "/": "filter",
  c: "compare",
  Backspace: "undo",
  d: "theme",
  "?": "help",
};

/** The command of a key, or null: keys with Ctrl, Alt or Meta, and keys that the focused field needs itself. */
export function commandOf(event: KeyboardEvent): Command | null {
  if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return null;
  const target = event.target instanceof Element ? event.target : null;
  const tag = target?.tagName ?? "";
  if (tag === "SELECT" || tag === "TEXTAREA" || (target?.closest("dialog") ?? null)) return null;
  if (tag === "INPUT" && /^(Arrow|Home|End)/.test(event.key)) return null;
  return COMMANDS[event.key] ?? null;
}
