"""Two sorted tables held against each other row by row, as machine code: made one, or what the other one lacks. A few
nanoseconds a row, where sorting again or searching takes a few dozen. Needs the extra ``fast``."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from sim.vector.code import llvm
from sim.vector.rows import Columns, lacking, part, size, taken


def merged(left: Columns, right: Columns) -> Columns:
    """The rows of two sorted tables in order, by key and then by the other words, as
    :func:`sim.vector.rows.in_order` has them. Equal rows are all kept. Raises LocalError without llvmlite."""
    tables = [tuple(np.ascontiguousarray(column) for column in table) for table in (left, right)]
    rows = size(left) + size(right)
    out = tuple(np.empty(rows, np.uint64) for _ in left)
    taken = 0
    if size(left) and size(right):
        one, other, both = (_places(table) for table in (*tables, out))
        taken = _compiled(len(left))[1](one, size(left), other, size(right), both)
    # One of them has come to its end: which, and how far the other is, follows from how many were taken.
    first, second = taken & 0xFFFFFFFF, taken >> 32
    for table, begin in zip(tables, (first, second), strict=True):
        for column, target in zip(part(table, begin, size(table)), out, strict=True):
            if len(column):
                target[first + second :] = column
    return out


def _places(table: Columns) -> Any:
    """Where the columns lie."""
    return (ctypes.c_void_p * len(table))(*(column.ctypes.data for column in table))


SCAN_ROWS = 16
"""A table of more than so many times as many rows is searched, and not walked through."""


def missing(rows: Columns, table: Columns) -> Columns:
    """The rows that a table does not have, as :func:`sim.vector.rows.lacking` has them."""
    few, many = size(rows), size(table)
    if not few or not many or many > SCAN_ROWS * few:
        return lacking(rows, table)
    tables = [tuple(np.ascontiguousarray(column) for column in each) for each in (rows, table)]
    keep = np.ones(few, np.bool_)
    one, other = (_places(each) for each in tables)
    _compiled(len(rows))[2](one, few, other, many, keep.ctypes.data)
    return rows if keep.all() else taken(rows, keep)


@cache
def _compiled(words: int) -> tuple[Any, Callable[..., int], Callable[..., int]]:
    """The engine that holds the code, and the functions ``merge`` and ``lack``, for tables of so many columns."""
    ir, binding = llvm()
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    module = ir.Module("tables")
    _write_merge(module, words)
    _write_lack(module, words)
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    target = binding.Target.from_default_triple().create_target_machine(cpu=binding.get_host_cpu_name(), opt=2)
    engine = binding.create_mcjit_compiler(parsed, target)
    engine.finalize_object()
    pointer, word = ctypes.c_void_p, ctypes.c_uint64
    kind = ctypes.CFUNCTYPE(word, pointer, word, pointer, word, pointer)
    return engine, kind(engine.get_function_address("merge")), kind(engine.get_function_address("lack"))


class _Walk:
    """A function that walks through two tables.

    After :meth:`begin` there is a row of each, ``mine`` and ``theirs``, at ``i`` and ``j``; ``first`` says whether mine
    comes first, ``equal`` whether they are the same. :meth:`close` ends the function.
    """

    def __init__(self, module: Any, name: str, words: int, result: Any) -> None:
        ir, _ = llvm()
        self.ir = ir
        self.i64, self.i1 = ir.IntType(64), ir.IntType(1)
        columns = self.i64.as_pointer().as_pointer()
        kind = ir.FunctionType(self.i64, [columns, self.i64, columns, self.i64, result])
        function = ir.Function(module, kind, name)
        left, self.left_rows, right, self.right_rows, self.result = function.args
        self.entry, self.row, self.tie, self.take = (
            function.append_basic_block(block) for block in ("entry", "row", "tie", "take")
        )
        self.b = b = ir.IRBuilder(self.entry)
        self.lefts, self.rights = (
            [b.load(b.gep(table, [self.number(word)])) for word in range(words)] for table in (left, right)
        )

    def begin(self) -> None:
        """Look at the next row of each."""
        b = self.b
        b.branch(self.row)
        b.position_at_end(self.row)
        self.i, self.j = b.phi(self.i64), b.phi(self.i64)
        self.mine = [b.load(b.gep(column, [self.i])) for column in self.lefts]
        self.theirs = [b.load(b.gep(column, [self.j])) for column in self.rights]
        below = b.icmp_unsigned("<", self.mine[0], self.theirs[0])
        b.cbranch(b.icmp_unsigned("==", self.mine[0], self.theirs[0]), self.tie, self.take)
        b.position_at_end(self.tie)
        no = self.ir.Constant(self.i1, 0)
        tied: Any = no
        same: Any = self.ir.Constant(self.i1, 1)
        for one, other in reversed(list(zip(self.mine[1:], self.theirs[1:], strict=True))):
            alike = b.icmp_unsigned("==", one, other)
            tied = b.select(alike, tied, b.icmp_unsigned("<", one, other))
            same = b.and_(same, alike)
        b.branch(self.take)
        b.position_at_end(self.take)
        self.first, self.equal = b.phi(self.i1), b.phi(self.i1)
        for phi, otherwise, value in ((self.first, below, tied), (self.equal, no, same)):
            phi.add_incoming(otherwise, self.row)
            phi.add_incoming(value, self.tie)

    def number(self, value: int) -> Any:
        return self.ir.Constant(self.i64, value)

    def close(self, left: Any) -> None:
        """Go on with the next row of the left table where ``left``, else with that of the right one, while there is
        one. Gives how far both have come: the right one above 32 bits."""
        b = self.b
        step = b.zext(left, self.i64)
        next_i, next_j = b.add(self.i, step), b.add(self.j, b.sub(self.number(1), step))
        for phi, value in ((self.i, next_i), (self.j, next_j)):
            phi.add_incoming(self.number(0), self.entry)
            phi.add_incoming(value, self.take)
        more = b.and_(b.icmp_unsigned("<", next_i, self.left_rows), b.icmp_unsigned("<", next_j, self.right_rows))
        done = b.append_basic_block("done")
        b.cbranch(more, self.row, done)
        b.position_at_end(done)
        b.ret(b.or_(next_i, b.shl(next_j, self.number(32))))


def _write_merge(module: Any, words: int) -> None:
    """``merge(left, rows, right, rows, out)``: rows of both in order, until one table has come to its end."""
    ir, _ = llvm()
    walk = _Walk(module, "merge", words, ir.IntType(64).as_pointer().as_pointer())
    b = walk.b
    outs = [b.load(b.gep(walk.result, [walk.number(word)])) for word in range(words)]
    walk.begin()
    at = b.add(walk.i, walk.j)
    for one, other, column in zip(walk.mine, walk.theirs, outs, strict=True):
        b.store(b.select(walk.first, one, other), b.gep(column, [at]))
    walk.close(walk.first)


def _write_lack(module: Any, words: int) -> None:
    """``lack(left, rows, right, rows, keep)``: sets the byte of a left row that the right table has to 0."""
    ir, _ = llvm()
    byte = ir.IntType(8)
    walk = _Walk(module, "lack", words, byte.as_pointer())
    b = walk.b
    walk.begin()
    # Written whenever the row is looked at: what is written last stands, for then it is left behind.
    b.store(b.zext(b.not_(walk.equal), byte), b.gep(walk.result, [walk.i]))
    walk.close(b.or_(walk.first, walk.equal))
