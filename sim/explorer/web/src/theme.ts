/** Light, dark, or as the system says. Remembered where the browser lets a file do so. */

import type { Theme } from "./toolbar.tsx";

const NAME = "resumark-explorer-theme";
const ORDER: Theme[] = ["auto", "light", "dark"];

export function readTheme(): Theme {
  try {
    const kept = localStorage.getItem(NAME);
    return ORDER.find((theme) => theme === kept) ?? "auto";
  } catch {
    return "auto";
  }
}

/** The theme after this one; from "auto" to what the system does not say. */
export function nextTheme(theme: Theme): Theme {
  const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
  const order: Theme[] = dark ? ["auto", "light", "dark"] : ["auto", "dark", "light"];
  return order[(order.indexOf(theme) + 1) % order.length]!;
}

export function showTheme(theme: Theme): void {
  document.documentElement.dataset["theme"] = theme;
  try {
    localStorage.setItem(NAME, theme);
  } catch {
    // A file that may not keep anything has the theme for as long as it is open.
  }
}
