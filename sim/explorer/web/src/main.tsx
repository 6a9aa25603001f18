/** Starts the page. */

import { render } from "preact";
import { App } from "./app.tsx";
import { readPage } from "./read.ts";
import { worldOf } from "./state.ts";
import { readTheme, showTheme } from "./theme.ts";

function start(root: HTMLElement): void {
  const data = document.getElementById("page")?.textContent ?? "";
  const page = readPage(data);
  document.title = `${page.title} · resumark`;
  render(<App world={worldOf(page)} />, root);
}

const root = document.getElementById("app");
if (root) {
  showTheme(readTheme());
  try {
    root.replaceChildren();
    start(root);
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    const box = document.createElement("p");
    box.className = "refusal";
    box.setAttribute("role", "alert");
    box.textContent = `This page cannot be shown. ${message}`;
    root.replaceChildren(box);
    throw error;
  }
}
