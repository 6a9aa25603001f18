"""``resumark check --engine vector``: a scenario as a model of its size, searched by the vector engine.

Safety first: every clause of the invariant in every state. Where all hold and the graph is not too large, liveness is
judged on the graph of the same model, with deadlines that may pass once something went wrong. And of a run that breaks
a clause the point of no return is found, by a pass backward over the graph, where that is small enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from time import monotonic
from typing import Any

from rich.text import Text

from fsm.errors import LocalError
from fsm.invariants import LIVENESS
from sim.cli_common import Chosen
from sim.cli_model import (
    ALIKE,
    PROTOCOL_LEGEND,
    Asked,
    Limits,
    Told,
    check_size,
    explore_asked,
    no_return,
    size_names,
    stop_after,
)
from sim.engines.result import EXIT_HOLDS, EXIT_LIVENESS, EXIT_UNKNOWN
from sim.model.form import without_symmetry
from sim.model.protocol_bounded import bounded
from sim.model.protocol_live import ProtocolFairness, live_model, promises
from sim.model.protocol_scenario import ModelOf, model_of
from sim.progress import bar, search_progress
from sim.vector.live import Liveness, judge_model
from sim.vector.result import VectorResult

LIVE_STATES_MAX = 200_000
"""Liveness takes a second search, of more states, for a clock comes in and requests are told apart, and then the whole
graph in memory. Left to itself, the command judges graphs up to that size."""

NOT_JUDGED = Told(
    facts=[("liveness", Text(f"not judged: more than {LIVE_STATES_MAX:,} states; --liveness judges it all the same"))],
    json={"liveness": []},
)


class _Live:
    """What is looked at beyond the clauses."""

    def __init__(self, of: ModelOf, limits: Limits, wanted: bool | None, only: Sequence[str]) -> None:
        self.bounds, self.rules = of.bounds, of.variant.rules()
        self.limits = limits
        self.wanted = wanted
        self.only = [name for name in only if name in LIVENESS or name == "L3"]
        self.model = live_model(self.bounds, self.rules)

    def __call__(self, result: VectorResult, quiet: bool) -> Told:
        if result.violation is not None:
            return no_return(self.bounds, self.rules, result.violation, quiet)
        if result.coverage != "exhausted" or self.wanted is False:
            return Told(json={"liveness": []})
        return NOT_JUDGED if self.wanted is None and result.states > LIVE_STATES_MAX else self._judge(quiet)

    def _judge(self, quiet: bool) -> Told:
        chosen = [p for p in promises(self.bounds, self.rules) if not self.only or p.property in self.only]
        with bar("judging liveness", quiet=quiet) as shown:
            judged = judge_model(
                self.model, chosen, ProtocolFairness(self.bounds),
                states_max=self.limits.states_max if self.wanted else LIVE_STATES_MAX,
                memory_bytes=self.limits.memory_bytes,
                stop=stop_after(self.limits.time_max_s, monotonic()), progress=search_progress(shown),
            )  # fmt: skip
        if not self.wanted and any(live.verdict == "bounded" for live in judged):
            return NOT_JUDGED
        lines: list[Text] = []
        facts: list[tuple[str, str | Text]] = []
        for live in judged:
            facts.append((live.promise.name, _verdict(live)))
            if live.verdict == "violated":
                lines.append(Text(f"{live.promise.property}: a fair run on which not: {live.promise.text}", "bold red"))
                lines += [Text(line) for line in live.lines()] + [Text()]
        code, verdict = EXIT_HOLDS, None
        if any(live.verdict == "bounded" for live in judged):
            code, verdict = EXIT_UNKNOWN, Text("unknown", "bold yellow")
        broken = [live.promise for live in judged if live.verdict == "violated"]
        if broken:
            code = EXIT_LIVENESS
            said = ", and ".join(f"{promise.property}, not {promise.text}" for promise in broken)
            verdict = Text.assemble(("violated", "bold red"), f": {said}")
        return Told(tuple(lines), facts, _as_json(judged), code, verdict=verdict)


def _verdict(live: Liveness) -> Text:
    how = f"{live.coverage}: {live.promise.text}; {live.states:,} states, {live.edges:,} steps between them"
    if live.verdict == "bounded":
        how = f"no answer within the bounds ({live.bound}): {live.promise.text}"
    style = {"holds": "bold green", "violated": "bold red"}.get(live.verdict, "bold yellow")
    word = {"bounded": "unknown"}.get(live.verdict, live.verdict)
    return Text.assemble((word, style), f", {how}")


def _as_json(judged: Sequence[Liveness]) -> dict[str, Any]:
    answers = [
        {
            "promise": live.promise.name, "property": live.promise.property, "text": live.promise.text,
            "verdict": live.verdict, "coverage": live.coverage, "states": live.states, "edges": live.edges,
            "bound": live.bound, "stem": [step.action for step in live.stem],
            "cycle": [step.action for step in live.cycle], "fairness": list(live.fairness),
        }
        for live in judged
    ]  # fmt: skip
    found: dict[str, Any] = {"liveness": answers}
    words = [live.verdict for live in judged]
    if "violated" in words or "bounded" in words:
        found["verdict"] = "violated" if "violated" in words else "unknown"
    return found


def check_vector(
    chosen: Chosen, limits: Limits, *, only: Sequence[str], liveness: bool | None, symmetry: bool | None, json: bool
) -> None:  # fmt: skip
    """Check the model of a scenario's size and end with the exit code of the answer.

    ``only`` names properties: the clauses that are theirs, and of liveness what is theirs; none: all. ``liveness``
    left open (None): where the graph is small. Raises LocalError for a scenario that the model does not hold.
    """
    of = model_of(chosen.scenario)
    check_size(of.bounds)
    model = bounded(of.bounds, of.variant.rules())
    if only:
        clauses = tuple(clause for clause in model.clauses if clause.property in only)
        if not clauses and not any(name in LIVENESS for name in only):
            held = ", ".join(dict.fromkeys(clause.property for clause in model.clauses if clause.property[:1] == "I"))
            raise LocalError(f"--only {' '.join(only)}: the model has no clause of that; it has {held}, L1, L2 and L3")
        model = replace(model, clauses=clauses)
    if symmetry is None:
        symmetry = of.variant.name == "watermark"  # what is wrong with a wrong version may be that names matter
    if not symmetry:
        model = without_symmetry(model)
    arguments = [*chosen.arguments, "--engine", "vector", *(part for name in only for part in ("--only", name))]
    arguments += [] if liveness is None else ["--liveness" if liveness else "--no-liveness"]
    if symmetry is (of.variant.name != "watermark"):
        arguments.append("--symmetry" if symmetry else "--no-symmetry")
    sizes = size_names(asdict(of.bounds)) | {"variant": of.variant.name}
    facts = [("freer" if not number else "", line) for number, line in enumerate(of.freer)]
    extra = {
        "engine": "vector", "scenario": chosen.title, "freer": list(of.freer),
        "properties": sorted({clause.property for clause in model.clauses if clause.property}),
    }  # fmt: skip
    asked = Asked(
        f"scenario {chosen.title}, as a model", model, sizes, ALIKE, PROTOCOL_LEGEND,
        arguments, "check", tuple(facts), extra,
    )  # fmt: skip
    explore_asked(asked, limits, json, _Live(of, limits, liveness, only))

