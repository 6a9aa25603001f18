"""What the tests in a browser share: the browser, pages as files, and what a reader would see of them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from sim import zoo
from sim.engines.check import check
from sim.engines.no_return import no_return
from sim.explorer.build import ordinary_run, page_of_trace
from sim.explorer.html import html_of
from sim.explorer.page import Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
"""A browser that may talk to nobody, on a machine without a screen."""


def browser_path() -> str | None:
    """The browser of this machine, if there is one."""
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


def broken_page(name: str) -> Page:
    """The shortest run that breaks a version, with ours beside it and all states around it."""
    trace = check(zoo.scenario_for(name)).violations[0].trace
    command = f"resumark check --detector {name}"
    point = no_return(trace)
    again = f"resumark explore --detector {name} --versus watermark"
    return page_of_trace(trace, command=command, point=point, versus="watermark", versus_command=again, nodes_max=2000)


def calm_page() -> Page:
    """Two requests, nothing wrong, with a graph: choices at most steps, and several resumes."""
    return page_of_trace(ordinary_run(zoo.default_scenario()).trace, command="resumark explore", nodes_max=2000)


def long_page(page: Page, steps: int) -> Page:
    """The steps of a page's first run over and over."""
    run = page.runs[0]
    many = [run.steps[0]]
    while len(many) < steps:
        many += [msgspec.structs.replace(step, number=len(many) + i) for i, step in enumerate(run.steps[1:])]
    run = msgspec.structs.replace(run, steps=tuple(many[:steps]), marks=())
    return msgspec.structs.replace(page, runs=(run,), graph=None)


@dataclass
class View:
    """A page in a window, and what it said or asked for behind the reader's back."""

    page: Any
    file: Path
    noise: list[str] = field(default_factory=list)

    @property
    def step(self) -> int:
        """The step that the toolbar shows."""
        return int(self.page.locator(".where b").inner_text())

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def row(self, step: int, pane: str = "a") -> Any:
        """The row of a step in the sequence diagram."""
        return self.page.locator(f"#{pane}-{step}")

    def fragment(self, pattern: str) -> str:
        """The place in the address, once it shows the present step and what ``pattern`` asks for."""
        self.page.wait_for_function(
            """pattern => RegExp(pattern).test(location.hash)
                && /step=(\\d+)/.exec(location.hash)[1] === document.querySelector(".where b").textContent""",
            arg=pattern,
        )
        return str(self.page.evaluate("location.hash"))


@contextmanager
def view_of(browser: Any, file: Path, fragment: str = "", width: int = 1280, **options: Any) -> Iterator[View]:
    """Opens a file in a window of its own, offline; afterwards it must have been silent."""
    size = {"width": width, "height": 844 if width < 600 else 800}
    context = browser.new_context(viewport=size, offline=True, **options)
    try:
        context.set_default_timeout(5000)
        view = View(context.new_page(), file)
        address = file.as_uri()
        view.page.on("console", lambda message: view.noise.append(f"{message.type}: {message.text}"))
        view.page.on("pageerror", lambda error: view.noise.append(f"error: {error}"))
        view.page.on("request", lambda asked: _hear(view, asked.url, address))
        view.page.goto(address + fragment)
        yield view
        assert view.noise == []
    finally:
        context.close()


def _hear(view: View, url: str, address: str) -> None:
    if not url.startswith((address, "data:")):
        view.noise.append(f"request: {url}")


def write_page(folder: Path, name: str, page: Page) -> Path:
    file = folder / f"{name}.html"
    file.write_bytes(html_of(page))
    return file


def words(text: str) -> str:
    """A text with all white space alike."""
    return re.sub(r"\s+", " ", text).strip()
