"""A test file made from a trace: readable, self-contained, and red for the version that the trace is of.

It holds the scenario and the steps as Python literals, with what each step does as a comment, and runs them by
:func:`sim.engines.guided.run_guided` under the trace's version and under the protocol itself. Nothing of the trace file
is needed any more.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import msgspec

from fsm.errors import LocalError
from fsm.invariants import PROPERTIES
from fsm.trace import WORKER, Trace
from sim.cli_view import StepView
from sim.engines.guided import guided_steps
from sim.engines.replay import scenario_of
from sim.scenario import Scenario, Variant

WIDTH = 110
"""Columns of the file, comments included."""

PROTOCOL = "watermark"
"""The version that is right."""

_FILE = '''"""{title}

The test runs one scenario by the steps of a trace, under each of VERSIONS. A step that a version cannot do is skipped;
after the last step no more faults happen, and the run goes on, fair to all that can happen, to its end. No property may
be broken then, and every request must have ended.

{outcome}
To run one of them: pytest "{file}::test_no_property_is_broken[{protocol}]"

For a version of your own, put it into VERSIONS: names of the zoo (`resumark zoo` lists them) joined by "+", or
rules, a `fsm.rules.Rules`. The file needs the package resumark and pytest, and nothing else.
"""

import pytest

from sim.engines.guided import run_guided

VERSIONS = {versions}

# The property that the trace breaks, and how it does:
{text}
BROKEN = "{broken}"

# {origin}
{command}

# What is run. Every key is here, so that another default changes nothing.
SCENARIO = {{
{scenario}
}}

# What is done, and the answers to what is left open meanwhile (which blocks, say).
STEPS = [
{steps}
]


@pytest.mark.parametrize("version", VERSIONS)
def test_no_property_is_broken(version):
    run = run_guided(SCENARIO, STEPS, version, broken=BROKEN, arrive_any_time={any_time})
    assert run.broken == (), str(run)
    assert run.ended, str(run)
'''


def pytest_file(trace: Trace, views: Sequence[StepView], no_return: int | None, file: str, command: str) -> str:
    """The text of a test file for a trace that fits.

    ``views`` are its steps in words, ``no_return`` its point of no return, ``file`` the name that the file will have,
    ``command`` the one that finds the trace again. Raises LocalError for a trace that breaks nothing, or has no steps
    of a simulator.
    """
    if trace.header.engine == WORKER:
        raise LocalError("--pytest: the trace of a real worker has no steps that could be done again")
    broken = trace.ending.property
    if not broken:
        raise LocalError("--pytest: this trace breaks no property, so there is nothing that a test could show")
    scenario = scenario_of(trace.header)
    version = version_of(scenario.variant)
    versions = list(dict.fromkeys([version, PROTOCOL]))
    verdict = f"'{version}' fails" + (f", '{PROTOCOL}' (the protocol itself) passes" if len(versions) > 1 else "")
    return _FILE.format(
        title="\n".join(textwrap.wrap(f"{broken}, as broken by '{version}': {PROPERTIES[broken]}.", WIDTH - 3)),
        outcome=f"As written: {verdict}.",
        file=_plain(file),
        protocol=PROTOCOL,
        versions=_quoted(repr(versions)),
        text=_comment(f"step {len(trace.steps)}: {trace.ending.text}"),
        broken=broken,
        origin=f"{len(trace.steps)} steps, found by {trace.header.engine}:",
        command=_comment(command, fold=False),
        scenario=_scenario_text(scenario),
        steps="\n".join(_step_lines(trace, views, no_return)),
        any_time=trace.header.engine == "check",
    )


def version_of(variant: Variant) -> str:
    """A variant's name, as :func:`sim.engines.guided.version_named` reads it."""
    shown = [variant.detector] if variant.detector != PROTOCOL or not variant.hazards else []
    return "+".join([*shown, *variant.hazards])


def _plain(text: str) -> str:
    """Text that can stand within a docstring."""
    return text.replace("\\", "/").replace('"', "'").replace("\n", " ")


def _comment(text: str, indent: str = "", *, fold: bool = True) -> str:
    """Text as a comment, in lines of bounded width; a command stays on one."""
    lines = textwrap.wrap(text, WIDTH - len(indent) - 2) if fold else [" ".join(text.splitlines())]
    return "\n".join(f"{indent}# {line}" for line in lines)


def _scenario_text(scenario: Scenario) -> str:
    """The scenario but for its variant."""
    sections = msgspec.to_builtins(scenario)
    del sections["variant"]
    lines = []
    for name, section in sections.items():
        text = _quoted(f'"{name}": {section!r},').replace('": ', '":\0')  # a line does not end after a key
        lines += textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="        ", break_long_words=False)
    return "\n".join(lines).replace("\0", " ")


def _quoted(text: str) -> str:
    """A literal of names and numbers in the quotes that formatters like."""
    return text.replace("'", '"')


def _step_lines(trace: Trace, views: Sequence[StepView], no_return: int | None) -> list[str]:
    """The steps, each below a comment that says what it does."""
    lines = []
    if no_return == 0:
        lines.append(_comment("Point of no return, at the start: without faults every run fails.", "    "))
    for view, step in zip(views, guided_steps(trace.steps), strict=True):
        lines.append(_comment(_words(view), "    "))
        lines.append(_quoted(f"    {step},"))
        if view.number == no_return:
            lines.append(_comment("Point of no return: from here every continuation fails.", "    "))
    return lines


def _words(view: StepView) -> str:
    """What a step does, in one line."""
    sides = []
    for side, cells in (("sender", view.senders), ("receiver", view.receivers)):
        for rank, cell in enumerate(cells):
            if cell:
                sides.append(f"{side}{f' {rank}' if len(cells) > 1 else ''}: {cell}")
    return "; ".join([f"{view.number}  {view.action}", *sides])


__all__ = ["pytest_file", "version_of"]
