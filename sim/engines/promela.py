"""Any model of :mod:`sim.model.form` written out in Promela, for :mod:`sim.engines.spin`.

What is written follows the model, mistakes and all: it tells an error of an engine and none of the model. Spin is given
the best that could be found for it, for the engines are compared by their speed as well:

* A field is an ``unsigned`` of as many bits as its values need, counted from its lowest value; one that has a single
  value is written as that value.
* Expressions are C, which Spin takes as it is, in straight lines: what several of them share is computed once.
* All guards are computed when a state is first looked at, and kept as bits, one set for each state on the path that is
  searched. The first option of the loop does that and is never taken; the others read a bit each.

The state vector holds the fields and Spin's own bookkeeping, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fsm.errors import LocalError
from sim.model.form import Action, Field, Model
from sim.model.symbol import CONST, FIELD, Symbol, Table, check_model, parts_of

FIELD_BITS_MAX = 31
"""The widest ``unsigned`` of Spin that is used."""
WORD_BITS = 64
HEADER = "model.h"

_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "mod": "%", "eq": "==", "ne": "!=", "lt": "<", "le": "<=",
          "gt": ">", "ge": ">=", "and": "&", "or": "|"}  # fmt: skip

_DIVISION = """
static inline long long floor_div(long long a, long long b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
static inline long long floor_mod(long long a, long long b) { return a - b * floor_div(a, b); }
"""
"""As Python divides: down, not towards 0."""


class Twin(NamedTuple):
    """A model in Promela, the C functions that it includes as ``HEADER``, and how many initial states there are."""

    promela: str
    functions: str = ""
    starts: int = 1


def promela(model: Model, *, clauses: bool = False) -> Twin:
    """A model in Promela, symmetry left out; ``clauses`` checks them in every state that has been reached.

    Several initial states are chosen from in a first step, so that Spin counts one state and as many transitions as
    there are initial states on top: :func:`sim.engines.spin.run` is told. Raises LocalError for a field that is wider
    than 31 bits.
    """
    writer = _Writer(model)
    return Twin(writer.text(), writer.functions(clauses), len(model.initial))


class _Writer:
    def __init__(self, model: Model) -> None:
        self.model = model
        self.table: Table = check_model(model)
        self.fields = {field.name: field for field in model.fields}
        self.words = (len(model.actions) + WORD_BITS - 1) // WORD_BITS or 1

    def text(self) -> str:
        first, *others = self.model.start_states()
        declared = [
            f"unsigned {_name(field)} : {_bits(field)} = {first[field.name] - field.low};"
            for field in self.model.fields
            if _bits(field)
        ]
        choice = []
        if others:
            choice = ["if", ":: d_step { true -> skip }"]
            for start in others:
                changed = [field for field in self.model.fields if start[field.name] != first[field.name]]
                sets = [f"{_name(field)} = {start[field.name] - field.low}" for field in changed]
                choice.append(f":: d_step {{ {'; '.join(['true', *sets])} }}")
            choice.append("fi;")
        steps = [
            f":: d_step {{ c_expr {{ GUARD{number} }} -> c_code {{ act{number}(); }} }} /* {action.name} */"
            for number, action in enumerate(self.model.actions)
        ]
        lines = [f"/* {self.model.name} */", *declared, f'c_code {{ \\#include "{HEADER}" }}']
        lines += ["active proctype all() {", *choice, "end: do", ":: d_step { c_expr { LOOK } -> skip }"]
        lines.append(":: c_expr { broken } -> assert(false)")
        return "\n".join([*lines, *steps, "od }", ""])

    def functions(self, clauses: bool) -> str:
        lines = [_DIVISION, *self._guards(clauses)]
        for number, action in enumerate(self.model.actions):
            lines += self._act(number, action)
        return "\n".join(lines) + "\n"

    def _guards(self, clauses: bool) -> Iterator[str]:
        """``look`` computes all guards, of the state at the end of the path; ``enabled`` tells one of them."""
        guards = [self.table.guard(action) for action in self.model.actions]
        checked = [self.table.clause(clause) for clause in self.model.clauses] if clauses else []
        yield "extern long depth;"
        yield "static int broken;"
        yield f"static unsigned long long guards[{self.words}ul * (DEPTH_MAX + 2)];"
        yield "static int look(void) {"
        yield from self._computed([*checked, *guards])
        if checked:
            yield f"broken = !({' & '.join(map(self._value, checked))});"
        yield f"unsigned long long *to = guards + {self.words}ul * depth;"
        for word in range(self.words):
            bits = [
                f"(unsigned long long) {self._value(guard)} << {number}"
                for number, guard in enumerate(guards[word * WORD_BITS : (word + 1) * WORD_BITS])
            ]
            yield f"to[{word}] = {' | '.join(bits) or '0'};"
        yield "return 0; }"
        yield "#define LOOK look()"
        for number in range(len(guards)):
            at = f"guards[{self.words}ul * depth + {number // WORD_BITS}]"
            yield f"#define GUARD{number} ({at} >> {number % WORD_BITS} & 1)"

    def _act(self, number: int, action: Action) -> Iterator[str]:
        """All fields change at once: the new values are computed before any of them is set."""
        update = self.table.update(action)
        yield f"static inline void act{number}(void) {{"
        yield from self._computed(update.values())
        for name, symbol in update.items():
            field = self.fields[name]
            if _bits(field):
                yield f"now.{_name(field)} = {self._value(symbol)} - ({field.low});"
        yield "}"

    def _computed(self, roots: Iterable[Symbol]) -> Iterator[str]:
        """The parts of expressions, each in a variable of its own."""
        for part in parts_of(roots):
            if part.kind != CONST:
                wide = max(abs(part.low), abs(part.high)) >> 31
                yield f"const {'long long' if wide else 'int'} v{part.number} = {self._expression(part)};"

    def _expression(self, symbol: Symbol) -> str:
        if symbol.kind == FIELD:
            field = self.fields[str(symbol.value)]
            return f"now.{_name(field)} + ({field.low})" if _bits(field) else str(field.low)
        values = [self._value(part) for part in symbol.args]
        if symbol.kind == "where":
            return f"{values[0]} ? {values[1]} : {values[2]}"
        if symbol.kind in ("min", "max"):
            return f"{values[0]} {'<' if symbol.kind == 'min' else '>'} {values[1]} ? {values[0]} : {values[1]}"
        if symbol.kind in ("div", "mod") and symbol.args[0].low < 0:
            return f"floor_{symbol.kind}({values[0]}, {values[1]})"
        wide = any(max(abs(part.low), abs(part.high)) >> 31 for part in (symbol, *symbol.args))
        return f"{'(long long) ' if wide else ''}{values[0]} {_SIGNS[symbol.kind]} {values[1]}"

    def _value(self, symbol: Symbol) -> str:
        return f"({symbol.value})" if symbol.kind == CONST else f"v{symbol.number}"


def _name(field: Field) -> str:
    """Not the name alone, which may be a word of Promela or of C."""
    return f"f_{field.name}"


def _bits(field: Field) -> int:
    bits = (field.high - field.low).bit_length()
    if bits > FIELD_BITS_MAX:
        raise LocalError(
            f"field '{field.name}': {field.low}..{field.high} is wider than the {FIELD_BITS_MAX} bits of Promela"
        )
    return bits
