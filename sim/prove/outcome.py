"""What a proof comes to: of the protocol, of each variant of the zoo, and of a single condition that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from sim.engines.result import EXIT_HOLDS, EXIT_LIVENESS, EXIT_SAFETY, EXIT_UNKNOWN
from sim.model.protocol import Symbolic, symbolic
from sim.model.variants import MODEL_VARIANTS, ModelVariant
from sim.prove.conditions import Prover
from sim.prove.induction import FAILED, PROVED, UNKNOWN, Condition, Proof, Shown, fields_that_matter
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


def counterexample(symbolic: Symbolic, condition: Condition) -> list[Shown]:
    """The fields of the protocol that matter for a condition that failed."""
    proof = Proof(symbolic.model, symbolic.given, symbolic.inputs)
    return fields_that_matter(proof, condition, progress_conditions(symbolic))


__all__ = [
    "BREAKS", "HOLDS", "NOT_HELD", "UNEXPECTED", "Shown", "VariantOutcome", "counterexample", "exit_code_of",
    "prove_variant", "prove_zoo",
]  # fmt: skip
