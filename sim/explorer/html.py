"""A page as one HTML file: its data, the script that draws it, its style sheet, and nothing from anywhere else.

Whatever stands in the data (names, texts of peers, a scenario's strings) is data and stays that: the JSON has no ``<``
in it, so that no tag can end the element that it stands in, and a content security policy lets the two scripts and the
style sheet of this very file run, by their hashes, and nothing else; nor may the page load or send anything.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from html import escape
from importlib.resources import files
from typing import NamedTuple

import msgspec

from fsm.errors import LocalError
from sim.explorer.page import Page

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="resumark explore">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<div id="app"></div>
<noscript>
{summary}
</noscript>
<script type="application/json" id="page">{data}</script>
<template id="licences"><pre>{licences}</pre></template>
<script>{script}</script>
</body>
</html>
"""


class Parts(NamedTuple):
    """What is built from ``sim/explorer/web``: the script, the style sheet, the licences of what they contain."""

    script: str
    style: str
    licences: str


def parts() -> Parts:
    """The parts that came with this package. Raises LocalError where they were not built."""
    folder = files("sim.explorer") / "web" / "dist"
    try:
        script, style, licences = (
            (folder / name).read_text(encoding="utf-8") for name in ("explorer.js", "explorer.css", "LICENSES.txt")
        )
    except OSError as error:
        raise LocalError(
            f"{folder}: the page's script was not built: {error.strerror or error}; "
            "in a source tree: cd sim/explorer/web && npm ci && npm run build"
        ) from None
    return Parts(script, style, licences)


def html_of(page: Page, built: Parts | None = None) -> bytes:
    """The file. Raises LocalError where the script was not built, or could not stand in a page."""
    script, style, licences = built or parts()
    for name, text, end in (("explorer.js", script, "</script"), ("explorer.js", script, "<!--"),
                            ("explorer.css", style, "</style")):  # fmt: skip
        if end in text.lower():
            raise LocalError(f"{name}: holds '{end}', which would end it in the middle of a page")
    text = _PAGE.format(
        policy=_policy(script, style), title=escape(page.title), style=style, summary=_summary(page),
        data=data_of(page), licences=escape(licences, quote=False), script=script,
    )  # fmt: skip
    return text.encode()


def data_of(page: Page) -> str:
    """The records as JSON that may stand in a page: no ``<``, ``>`` or ``&`` in it."""
    text = msgspec.json.encode(page).decode()
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _policy(script: str, style: str) -> str:
    return (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return "sha256-" + b64encode(hashlib.sha256(text.encode()).digest()).decode()


_VERDICTS = {"holds": "nothing broken"}
"""What is said of one run, in other words than of a version."""


def _summary(page: Page) -> str:
    """What is in the page, for whoever runs no scripts."""
    lines = [f"<h1>{escape(page.title)}</h1>", "<p>This page needs JavaScript to draw the run; it loads nothing.</p>"]
    for run in page.runs:
        verdict = escape(_VERDICTS.get(run.verdict, run.verdict))
        lines.append(f"<h2>{escape(run.name)}: {verdict}, {max(0, len(run.steps) - 1)} steps</h2>")
        broken = [mark for mark in run.marks if mark.kind == "violation"]
        lines += [f"<p>Step {mark.step} breaks {escape(mark.property)}: {escape(mark.text)}</p>" for mark in broken]
        lines.append(f"<p>Again: <code>{escape(run.command)}</code></p>" if run.command else "")
        steps = [f'<li value="{step.number}">{escape(_line(step.text, step.skipped))}</li>' for step in run.steps]
        lines.append("<ol>" + "".join(steps) + "</ol>")
    return "\n".join(line for line in lines if line)


def _line(text: str, skipped: bool) -> str:
    return f"{text} (not possible here)" if skipped else text
