"""Two sorted tables made one, row by row, as machine code: a few nanoseconds a row, where sorting them again takes a
few dozen. Needs the extra ``fast``."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from sim.engines.vector_rows import Columns, part, size
from sim.engines.vector_simulate_native import llvm


def merged(left: Columns, right: Columns) -> Columns:
    """The rows of two sorted tables in order, by key and then by the other words, as
    :func:`sim.engines.vector_rows.in_order` has them. Equal rows are all kept. Raises LocalError without llvmlite."""
    tables = [tuple(np.ascontiguousarray(column) for column in table) for table in (left, right)]
    rows = size(left) + size(right)
    out = tuple(np.empty(rows, np.uint64) for _ in left)
    taken = 0
    if size(left) and size(right):
        one, other, both = (_places(table) for table in (*tables, out))
        taken = _merge(len(left))[1](one, size(left), other, size(right), both)
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


@cache
def _merge(words: int) -> tuple[Any, Callable[..., int]]:
    """The engine that holds the code, and the function, for tables of so many columns."""
    _, binding = llvm()
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    module = binding.parse_assembly(str(_write(words)))
    module.verify()
    target = binding.Target.from_default_triple().create_target_machine(cpu=binding.get_host_cpu_name(), opt=2)
    engine = binding.create_mcjit_compiler(module, target)
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(
        ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p
    )
    return engine, kind(engine.get_function_address("merge"))


def _write(words: int) -> Any:
    """``merge(left, rows, right, rows, out)``: until one table has come to its end. Gives how many rows of the left one
    were taken, and above 32 bits how many of the right one."""
    ir, _ = llvm()
    i64, i1 = ir.IntType(64), ir.IntType(1)
    columns = i64.as_pointer().as_pointer()
    module = ir.Module("merge")
    function = ir.Function(module, ir.FunctionType(i64, [columns, i64, columns, i64, columns]), "merge")
    left, left_rows, right, right_rows, out = function.args
    blocks = [function.append_basic_block(name) for name in ("entry", "row", "tie", "take", "done")]
    entry, row, tie, take, done = blocks
    b = ir.IRBuilder(entry)
    number = [ir.Constant(i64, column) for column in range(words)]
    lefts, rights, outs = ([b.load(b.gep(table, [at])) for at in number] for table in (left, right, out))
    b.branch(row)
    b.position_at_end(row)
    i, j = b.phi(i64), b.phi(i64)
    mine = [b.load(b.gep(column, [i])) for column in lefts]
    theirs = [b.load(b.gep(column, [j])) for column in rights]
    below = b.icmp_unsigned("<", mine[0], theirs[0])
    b.cbranch(b.icmp_unsigned("==", mine[0], theirs[0]), tie, take)
    b.position_at_end(tie)
    tied: Any = ir.Constant(i1, 0)
    for one, other in reversed(list(zip(mine[1:], theirs[1:], strict=True))):
        same = b.icmp_unsigned("==", one, other)
        tied = b.select(same, tied, b.icmp_unsigned("<", one, other))
    b.branch(take)
    b.position_at_end(take)
    first = b.phi(i1)
    first.add_incoming(below, row)
    first.add_incoming(tied, tie)
    at = b.add(i, j)
    for one, other, column in zip(mine, theirs, outs, strict=True):
        b.store(b.select(first, one, other), b.gep(column, [at]))
    step = b.zext(first, i64)
    next_i, next_j = b.add(i, step), b.add(j, b.sub(ir.Constant(i64, 1), step))
    for phi, value in ((i, next_i), (j, next_j)):
        phi.add_incoming(ir.Constant(i64, 0), entry)
        phi.add_incoming(value, take)
    more = b.and_(b.icmp_unsigned("<", next_i, left_rows), b.icmp_unsigned("<", next_j, right_rows))
    b.cbranch(more, row, done)
    b.position_at_end(done)
    b.ret(b.or_(next_i, b.shl(next_j, ir.Constant(i64, 32))))
    return module
