"""What a proof comes to: of the protocol, of each variant of the zoo, and of a single condition that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from fsm.kernel import INT
from sim.engines.result import EXIT_HOLDS, EXIT_LIVENESS, EXIT_SAFETY, EXIT_UNKNOWN
from sim.model.form import Clause, Fields
from sim.model.protocol import Symbolic, symbolic
from sim.model.variants import MODEL_VARIANTS, ModelVariant
from sim.prove.conditions import FAILED, PROVED, UNKNOWN, Condition, Prover
from sim.prove.progress import progress_conditions

HOLDS, BREAKS, NOT_HELD, UNEXPECTED = "holds", "breaks", "not held", "unexpected"


class VariantOutcome(NamedTuple):
    """One row of the zoo: ``result`` is ``holds``, ``breaks``, ``not held`` or ``unexpected``. ``condition`` is the
    one that was broken."""

    variant: ModelVariant
    result: str
    condition: Condition | None
    elapsed_s: float

    @property
    def as_expected(self) -> bool:
        """Whether the row came out as it must."""
        return self.result != UNEXPECTED


class Shown(NamedTuple):
    """A value of a counterexample: a field before and after the step, and whether it was left open to the action."""

    field: str
    before: int
    after: int
    open: bool


def exit_code_of(conditions: list[Condition]) -> int:
    """0 if all are proved, 1 if a safety condition failed, 3 if only progress failed, 4 if the solver gave up."""
    failed = [condition for condition in conditions if condition.result == FAILED]
    if failed:
        return EXIT_SAFETY if any(condition.safety for condition in failed) else EXIT_LIVENESS
    return EXIT_UNKNOWN if any(condition.result == UNKNOWN for condition in conditions) else EXIT_HOLDS


def prove_variant(variant: ModelVariant, clock: Callable[[], float]) -> VariantOutcome:
    """Find out one row: what must hold is proved whole, of the others the condition that they are known to break."""
    started = clock()
    if variant.not_held:
        return VariantOutcome(variant, NOT_HELD, None, 0.0)
    results = Prover(symbolic(variant.rules()), clock).prove(variant.breaks)
    if variant.breaks:
        broken = next((condition for condition in results if condition.result == FAILED), None)
        return VariantOutcome(variant, BREAKS if broken is not None else UNEXPECTED, broken, clock() - started)
    wrong = next((condition for condition in results if condition.result != PROVED), None)
    return VariantOutcome(variant, HOLDS if wrong is None else UNEXPECTED, wrong, clock() - started)


def prove_zoo(clock: Callable[[], float]) -> Iterator[VariantOutcome]:
    """Every variant, in the order of the zoo. ``watermark`` is the protocol itself, and is left out."""
    for name, variant in MODEL_VARIANTS.items():
        if name != "watermark":
            yield prove_variant(variant, clock)


# --- counterexamples -------------------------------------------------------------------------------------


class _Listening(dict[str, int]):
    """Values that note which of them were read."""

    def __init__(self, values: Mapping[str, int]) -> None:
        super().__init__(values)
        self.read: dict[str, None] = {}

    def __getitem__(self, name: str) -> int:
        self.read[name] = None
        return super().__getitem__(name)


def _read_by(symbolic: Symbolic, expressions: list[Any], state: Mapping[str, int]) -> dict[str, None]:
    values = _Listening(state)
    view = Fields(values, symbolic.model.name)
    for expression in expressions:
        expression(INT, view)
    return values.read


def counterexample(symbolic: Symbolic, condition: Condition) -> list[Shown]:
    """The fields that matter: those that the clause or the guard reads, and those that the action changes; of the
    others, a clause cannot depend on them. In the order of the model."""
    model = symbolic.model
    before = condition.before or {}
    after = condition.after or before
    clauses: tuple[Clause, ...] = (*model.clauses, *progress_conditions(symbolic))
    clause = next(clause for clause in clauses if clause.name == condition.clause)
    read = _read_by(symbolic, [clause.holds], after)
    inputs: dict[str, None] = {}
    if condition.action:
        action = model.action(condition.action)
        inputs = _read_by(symbolic, [action.guard, action.update], before)
    start = dict(model.initial[0])
    shown = []
    for field in model.fields:
        name = field.name
        is_open = name in symbolic.inputs
        changed = before[name] != after[name]
        matters = (
            changed
            or (name in inputs if is_open else name in read)
            or (name in inputs and before[name] != start.get(name))
        )
        if matters and not (is_open and not (name in inputs or name in read)):
            shown.append(Shown(name, before[name], after[name], is_open))
    return shown
