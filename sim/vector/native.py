"""Successors as machine code: guards, clauses and updates of a model, compiled by LLVM. Needs the extra ``fast``.

64 states are a group. Their fields are unpacked into small numbers side by side, so that one instruction handles 32 or
64 states; guards and clauses are a straight line of such instructions, and the update of an action that no state of the
group may take is jumped over. What each state becomes is packed again and appended to the successors.

Most steps of a search lead where another step has led before. So the successors that were given out last are kept, each
in the one place of a table that its bits point to, and one that is found there as it is, bit by bit, is left out: it
has been given out. That drops most doubles before anything is sorted, and never anything else.

This is a short cut of :class:`~sim.vector.expand.Expander` for what goes well. Where a clause is broken or a
field would leave its bounds, it says so and the expander is asked again about the same states.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sim.model.form import Model
from sim.model.symbol import Table, parts_of
from sim.vector.code import LANES, Code, available
from sim.vector.expand import Expander
from sim.vector.nodes import Node, Nodes, fields_of
from sim.vector.pack import WORD_BITS, Packing, Slot
from sim.vector.rows import Columns, size
from sim.vector.store import Store

BLOCK = 8
"""States that are unpacked and packed at once: eight words."""
ROOM_ROWS = 1 << 16
"""Successors that are handed out at once."""
TABLE_ROWS = 1 << 21
"""Successors that are remembered, a power of two."""
TABLE_ROWS_MIN = 1 << 14
MEMORY_SHARE = 4
"""Of the memory that is left, at most one part in so many is taken by tables."""
DONE, FULL, TROUBLE = range(3)
HEADER = ("row", "rows", "filled", "transitions", "shift")
FACTOR = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class _Write(NamedTuple):
    """A field that an action computes. ``checked``: it is not plain that it stays within its bounds."""

    slot: Slot
    node: Node
    low: int
    high: int
    checked: bool


class _Step(NamedTuple):
    """An action: its guard, per word what is cleared and what is set, and what is computed."""

    guard: Node
    fixed: dict[int, tuple[int, int]]
    writes: tuple[_Write, ...]


class Plain(NamedTuple):
    """What is compiled. ``bits`` is how wide a number must be: 8 or 16. ``columns`` are the fields that are read."""

    steps: tuple[_Step, ...]
    clauses: tuple[Node, ...]
    columns: dict[str, int]
    bits: int


def plain(model: Model, table: Table, packing: Packing) -> Plain | None:
    """The model as nodes; ``None`` where its numbers are too large, or it divides by what is not always the same."""
    nodes = Nodes()
    try:
        clauses = [nodes.of(table.clause(clause)) for clause in model.clauses]
        steps = []
        for action in model.actions:
            fixed: dict[int, tuple[int, int]] = {}
            writes = []
            for name, symbol in table.update(action).items():
                node, field, slot = nodes.of(symbol), model.field(name), packing.slots[name]
                if node.op == "field" and node.value == name:
                    continue
                inside = field.low <= node.low and node.high <= field.high
                clear, bits = fixed.get(slot.word, (_MASK, 0))
                if node.op == "const" and inside:
                    bits |= (node.value - slot.low) << slot.shift
                else:
                    writes.append(_Write(slot, node, field.low, field.high, not inside))
                fixed[slot.word] = (clear & ~slot.mask, bits)
            steps.append(_Step(nodes.of(table.guard(action)), fixed, tuple(writes)))
    except NotImplementedError:
        return None
    roots = [*clauses, *(step.guard for step in steps), *(write.node for step in steps for write in step.writes)]
    limits = [limit for step in steps for write in step.writes for limit in (write.low, write.high)]
    parts = parts_of(roots)
    low, high = min([0, *limits, *(node.low for node in parts)]), max([1, *limits, *(node.high for node in parts)])
    wide = [bits for bits in (8, 16) if -(1 << bits - 1) <= low and high < 1 << bits - 1]
    if not wide:
        return None
    columns = {name: index for index, name in enumerate(fields_of(roots))}
    return Plain(tuple(steps), tuple(node for node in clauses if node is not nodes.true), columns, wide[0])


class _Expand(Code):
    """Writes ``expand(rows, out, table, cells, scratch, header)``.

    ``rows`` and ``out`` are a column for each word, ``cells`` a line of small numbers for each field and then for each
    value that is computed; ``scratch`` holds the guards, the words that are made, and places in the table.
    """

    def __init__(self, what: Plain, packing: Packing, rows_max: int) -> None:
        super().__init__(what.bits, what.columns)
        self.what, self.packing, self.rows_max = what, packing, rows_max
        self.block, self.small = self.ir.VectorType(self.i64, BLOCK), self.ir.VectorType(self.cell, BLOCK)
        self._constants: dict[tuple[Any, int], Any] = {}
        self.guards_at, self.words_at = 0, len(what.steps)
        self.places_at = self.words_at + packing.words * LANES
        self.room = ROOM_ROWS

    @property
    def scratch_words(self) -> int:
        """The size of ``scratch``."""
        return self.places_at + len(self.what.steps) * LANES

    # --- memory ---------------------------------------------------------------------------------------

    def head(self, name: str) -> Any:
        return self.b.gep(self.header, [self.word(HEADER.index(name))])

    def at(self, base: Any, index: Any) -> Any:
        """The place of a word."""
        return self.b.gep(base, [index])

    def row_at(self, word: int, row: Any) -> Any:
        """The place of a word of a state that is expanded."""
        return self.at(self.rows, self.b.add(row, self.word(word * self.rows_max)))

    def out_at(self, word: int, row: Any) -> Any:
        """The place of a word of a successor."""
        return self.at(self.out, self.b.add(row, self.word(word * self.room)))

    def made_at(self, word: int, lane: Any) -> Any:
        """The place of a word that a lane becomes."""
        return self.at(self.scratch, self.b.add(lane, self.word(self.words_at + word * LANES)))

    def cells(self, index: int) -> Any:
        """A line of small numbers."""
        return self.lines[index]

    def eight(self, base: Any, block: Any, first: int) -> Any:
        """The place of eight words or small numbers: the block of that number, from ``first`` on."""
        return self.b.gep(base, [self.b.add(block, self.word(first // BLOCK))])

    def load_eight(self, pointer: Any) -> Any:
        """What lies there."""
        loaded = self.b.load(pointer)
        loaded.align = BLOCK
        return loaded

    def point(self) -> None:
        """Work out once where everything lies."""
        b = self.b
        lines = len(self.place) + max((len(step.writes) for step in self.what.steps), default=0)
        starts = [b.gep(self.columns, [self.word(line * LANES)]) for line in range(lines)]
        self.lines = [b.bitcast(start, self.numbers.as_pointer()) for start in starts]
        self.small_base = b.bitcast(self.columns, self.small.as_pointer())
        self.row_base = b.bitcast(self.rows, self.block.as_pointer())
        made = b.gep(self.scratch, [self.word(self.words_at)])
        self.made_base = b.bitcast(made, self.block.as_pointer())

    def constant(self, value: int, kind: Any = None) -> Any:
        """The same value in every lane, or in every word of a block. Written out once: they are many, and long."""
        kind = kind or self.numbers
        bits = value & ((1 << kind.element.width) - 1)
        known = self._constants.get((kind, bits))
        if known is None:
            known = self._constants[kind, bits] = self.ir.Constant(kind, [bits] * kind.count)
        return known

    def loop(self, first: Any, end: Any, body: Callable[[Any], None]) -> None:
        """``body`` of each number from ``first`` to before ``end``; it is run at least once."""
        b = self.b
        before, inside, after = b.block, b.append_basic_block("each"), b.append_basic_block("done")
        b.branch(inside)
        b.position_at_end(inside)
        number = b.phi(self.i64)
        number.add_incoming(first, before)
        body(number)
        more = b.add(number, self.word(1))
        number.add_incoming(more, b.block)
        b.cbranch(b.icmp_unsigned("<", more, end), inside, after)
        b.position_at_end(after)

    # --- the parts ------------------------------------------------------------------------------------

    def unpack(self, row: Any) -> None:
        """The fields of a group."""

        first = self.b.lshr(row, self.word(BLOCK.bit_length() - 1))

        def block(number: Any) -> None:
            b, words = self.b, {}
            at = b.add(first, number)
            for name, line in self.place.items():
                slot = self.packing.slots[name]
                if slot.word not in words:
                    words[slot.word] = self.load_eight(self.eight(self.row_base, at, slot.word * self.rows_max))
                bits = words[slot.word]
                if slot.shift:
                    bits = b.lshr(bits, self.constant(slot.shift, self.block))
                value = b.trunc(b.and_(bits, self.constant((1 << slot.bits) - 1, self.block)), self.small)
                if slot.low:
                    value = b.add(value, self.constant(slot.low, self.small))
                b.store(value, self.eight(self.small_base, number, line * LANES)).align = BLOCK

        self.loop(self.word(0), self.word(LANES // BLOCK), block)

    def judge_and_guard(self, active: Any) -> Any:
        """The guards, as a word of bits each; gives the lanes in which a clause is broken."""
        b = self.b
        self.values = {}
        good = self.constant(1, self.truths)
        for node in self.what.clauses:
            good = b.and_(good, self.value(node))
        count = b.load(self.head("transitions"))
        for number, step in enumerate(self.what.steps):
            bits = b.and_(self.any_of(self.value(step.guard)), active)
            b.store(bits, self.at(self.scratch, self.word(self.guards_at + number)))
            count = b.add(count, self.count(bits))
        b.store(count, self.counted)
        return b.and_(b.not_(self.any_of(good)), active)

    def take(self, number: int, step: _Step, row: Any) -> None:
        """What an action makes of a group."""
        b = self.b
        if not step.fixed:
            return  # it changes nothing
        bits = b.load(self.at(self.scratch, self.word(self.guards_at + number)))
        inside, after = b.append_basic_block("taken"), b.append_basic_block("after")
        b.cbranch(b.icmp_unsigned("!=", bits, self.word(0)), inside, after)
        b.position_at_end(inside)
        self.values = {}
        for line, write in enumerate(step.writes):
            value = self.value(write.node)
            if write.checked:
                low = b.icmp_signed("<", value, self.constant(write.low))
                high = b.icmp_signed(">", value, self.constant(write.high))
                wrong = b.and_(self.any_of(b.or_(low, high)), bits)
                b.store(b.or_(b.load(self.trouble), wrong), self.trouble)
            self.store(value, self.cells(len(self.place) + line))
        self.values = {}
        at = b.lshr(row, self.word(BLOCK.bit_length() - 1))
        self.loop(self.word(0), self.word(LANES // BLOCK), lambda block: self._pack(step, b.add(at, block), block))
        b.store(b.call(self.append, [self.rows, self.out, self.scratch, row, bits, b.load(self.filled)]), self.filled)
        b.branch(after)
        b.position_at_end(after)

    def _pack(self, step: _Step, at: Any, block: Any) -> None:
        """The words of eight states, block ``at`` of all and ``block`` of the group, after a step."""
        b = self.b
        for word in range(self.packing.words):
            made = self.load_eight(self.eight(self.row_base, at, word * self.rows_max))
            clear, fixed = step.fixed.get(word, (_MASK, 0))
            if clear != _MASK:
                made = b.and_(made, self.constant(clear, self.block))
            if fixed:
                made = b.or_(made, self.constant(fixed, self.block))
            for line, write in enumerate(step.writes):
                if write.slot.word == word:
                    value = self.load_eight(self.eight(self.small_base, block, (len(self.place) + line) * LANES))
                    if write.slot.low:
                        value = b.sub(value, self.constant(write.slot.low, self.small))
                    bits = b.zext(value, self.block)
                    if write.slot.shift:
                        bits = b.shl(bits, self.constant(write.slot.shift, self.block))
                    made = b.or_(made, bits)
            b.store(made, self.eight(self.made_base, block, word * LANES)).align = BLOCK

    def write_append(self, module: Any) -> None:
        """``append(rows, out, scratch, row, bits, filled)``: the lanes of ``bits`` that differ from what they were."""
        word = self.i64.as_pointer()
        self.append = self.ir.Function(module, self.ir.FunctionType(self.i64, [word] * 3 + [self.i64] * 3), "append")
        self.append.linkage = "internal"
        self.rows, self.out, self.scratch, row, bits, filled = self.append.args
        self.b = b = self.ir.IRBuilder(self.append.append_basic_block("entry"))
        entry, inside, done = b.block, b.append_basic_block("lane"), b.append_basic_block("done")
        b.branch(inside)
        b.position_at_end(inside)
        left, count = b.phi(self.i64), b.phi(self.i64)
        left.add_incoming(bits, entry)
        count.add_incoming(filled, entry)
        lane = b.cttz(left, self.ir.Constant(self.i1, 1))
        differs: Any = self.word(0)
        for number in range(self.packing.words):
            made = b.load(self.made_at(number, lane))
            differs = b.or_(differs, b.xor(made, b.load(self.row_at(number, b.add(row, lane)))))
            b.store(made, self.out_at(number, count))
        more = b.add(count, b.zext(b.icmp_unsigned("!=", differs, self.word(0)), self.i64))
        rest = b.and_(left, b.sub(left, self.word(1)))
        left.add_incoming(rest, b.block)
        count.add_incoming(more, b.block)
        b.cbranch(b.icmp_unsigned("!=", rest, self.word(0)), inside, done)
        b.position_at_end(done)
        b.ret(more)

    def sift(self, first: Any, end: Any) -> Any:
        """Of the successors from ``first`` on, those that the table does not have; gives where they end."""
        b = self.b
        words, stride = self.packing.words, stride_of(self.packing.words)
        shift = b.load(self.head("shift"))
        fetch = self.b.module.declare_intrinsic(
            "llvm.prefetch", (), self.ir.FunctionType(
                self.ir.VoidType(), [self.ir.IntType(8).as_pointer(), *[self.ir.IntType(32)] * 3]))  # fmt: skip
        flags = [self.ir.Constant(self.ir.IntType(32), value) for value in (1, 3, 1)]

        def place(row: Any) -> None:
            mixed: Any = self.word(0)
            for number in range(words):
                mixed = b.mul(b.xor(mixed, b.load(self.out_at(number, row))), self.word(FACTOR))
                mixed = b.xor(mixed, b.lshr(mixed, self.word(32)))
            start = b.mul(b.lshr(mixed, shift), self.word(stride))
            b.store(start, self.at(self.scratch, b.add(b.sub(row, first), self.word(self.places_at))))
            pointer = b.bitcast(self.at(self.table, start), self.ir.IntType(8).as_pointer())
            b.call(fetch, [pointer, *flags])

        self.loop(first, end, place)
        kept = self.kept
        b.store(first, kept)

        def compare(row: Any) -> None:
            start = b.load(self.at(self.scratch, b.add(b.sub(row, first), self.word(self.places_at))))
            new = [b.load(self.out_at(number, row)) for number in range(words)]
            differs: Any = self.word(0)
            to = b.load(kept)
            for number, value in enumerate(new):
                pointer = self.at(self.table, b.add(start, self.word(number)))
                differs = b.or_(differs, b.xor(value, b.load(pointer)))
                b.store(value, pointer)
                b.store(value, self.out_at(number, to))
            b.store(b.add(to, b.zext(b.icmp_unsigned("!=", differs, self.word(0)), self.i64)), kept)

        self.loop(first, end, compare)
        return b.load(kept)

    # --- the function ---------------------------------------------------------------------------------

    def write(self) -> Any:
        ir = self.ir
        module = ir.Module("expand")
        self.write_append(module)
        word = self.i64.as_pointer()
        kind = ir.FunctionType(self.i64, [word, word, word, self.cell.as_pointer(), word, word])
        function = ir.Function(module, kind, "expand")
        self.rows, self.out, self.table, self.columns, self.scratch, self.header = function.args
        for argument in function.args:
            argument.add_attribute("noalias")
        self.b = b = ir.IRBuilder(function.append_basic_block("entry"))
        self.point()
        self.filled, self.trouble, self.counted, self.kept = (b.alloca(self.i64) for _ in range(4))
        loop, group, fits, good, over, end = (
            b.append_basic_block(name) for name in ("loop", "group", "fits", "good", "over", "end")
        )
        full, bad = b.append_basic_block("full"), b.append_basic_block("bad")
        b.branch(loop)
        b.position_at_end(loop)
        row, rows, first = (b.load(self.head(name)) for name in ("row", "rows", "filled"))
        b.cbranch(b.icmp_unsigned("<", row, rows), group, end)
        b.position_at_end(group)
        most = self.word(self.room - len(self.what.steps) * LANES)
        b.cbranch(b.icmp_unsigned("<=", first, most), fits, full)
        b.position_at_end(fits)
        self.unpack(row)
        left = b.sub(rows, row)
        some = b.sub(b.shl(self.word(1), left), self.word(1))
        active = b.select(b.icmp_unsigned("<", left, self.word(LANES)), some, self.word(-1))
        broken = self.judge_and_guard(active)
        b.store(self.word(0), self.trouble)
        b.store(first, self.filled)
        b.cbranch(b.icmp_unsigned("!=", broken, self.word(0)), bad, good)
        b.position_at_end(good)
        for number, step in enumerate(self.what.steps):
            self.take(number, step, row)
        b.cbranch(b.icmp_unsigned("!=", b.load(self.trouble), self.word(0)), bad, over)
        b.position_at_end(over)
        self._close(row, first, loop)
        for block, answer in ((end, DONE), (full, FULL), (bad, TROUBLE)):
            b.position_at_end(block)
            b.ret(self.word(answer))
        return module

    def _close(self, row: Any, first: Any, loop: Any) -> None:
        """The group is done: sift what it gave, and go on with the next one."""
        b = self.b
        filled = b.load(self.filled)
        b.store(b.load(self.counted), self.head("transitions"))
        b.store(b.add(row, self.word(LANES)), self.head("row"))
        sift = b.append_basic_block("sift")
        b.cbranch(b.icmp_unsigned("!=", filled, first), sift, loop)
        b.position_at_end(sift)
        b.store(self.sift(first, filled), self.head("filled"))
        b.branch(loop)


def stride_of(words: int) -> int:
    """Words from one place of the table to the next: no place lies across two cache lines."""
    return 1 << (words - 1).bit_length()


def place_of(row: Sequence[int], shift: int) -> int:
    """The place of a state in a table of 2 to the ``64 - shift`` places."""
    mixed = 0
    for word in row:
        mixed = (mixed ^ word) * FACTOR & _MASK
        mixed ^= mixed >> 32
    return mixed >> shift


class Native:
    """A model as machine code. After :meth:`successors` has come to its end, ``trouble`` tells that it ended early, and
    ``transitions`` counts the steps of the states it was given."""

    def __init__(self, what: Plain, packing: Packing, rows_max: int, table_rows: int = TABLE_ROWS) -> None:
        words = packing.words
        self.words = words
        self.trouble = False
        self.transitions = 0
        rows_max = -(-rows_max // LANES) * LANES
        code = _Expand(what, packing, rows_max)
        lines = len(what.columns) + max((len(step.writes) for step in what.steps), default=0)
        self._rows = np.zeros((words, rows_max), np.uint64)
        self._out = np.empty((words, ROOM_ROWS), np.uint64)
        self._table = _aligned(table_rows * stride_of(words), np.uint64)
        self._cells = _aligned(lines * LANES, np.int8 if what.bits == 8 else np.int16)
        self._scratch = _aligned(code.scratch_words, np.uint64)
        self._header = np.zeros(len(HEADER), np.uint64)
        self._shift = WORD_BITS - (table_rows.bit_length() - 1)
        self._header[HEADER.index("shift")] = self._shift
        # No state is all zeros in a table that is empty: what lies in the place of that state points elsewhere.
        self._table[0] = next(bits for bits in range(1, WORD_BITS) if place_of((bits, *[0] * (words - 1)), self._shift))
        self._engine, self._expand = _compiled(code)

    def successors(self, columns: Columns) -> Iterator[Columns]:
        """What the states lead to, without loops and without most doubles. The columns hold until the next are asked
        for."""
        rows = size(columns)
        for column, target in zip(columns, self._rows, strict=True):
            target[:rows] = column
        head = self._header
        row, end, filled, transitions = (HEADER.index(name) for name in HEADER[:4])
        head[row], head[end], head[filled], head[transitions] = 0, rows, 0, 0
        arrays = (self._rows, self._out, self._table, self._cells, self._scratch, head)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        answer = FULL
        while answer == FULL:
            answer = self._expand(*pointers)
            if head[filled]:
                yield tuple(column[: int(head[filled])] for column in self._out)
                head[filled] = 0
        self.trouble = answer == TROUBLE
        self.transitions = int(head[transitions])


def native_for(model: Model, table: Table, expander: Expander, store: Store) -> Native | None:
    """Machine code for a search whose memory has room for it; ``None`` where there can be none."""
    packing = expander.packing
    if expander.deadlock or not available() or len(model.actions) * LANES > ROOM_ROWS:
        return None
    what = plain(model, table, packing)
    rows = TABLE_ROWS
    while rows > TABLE_ROWS_MIN and not store.has_room(_bytes(packing.words, rows) * MEMORY_SHARE):
        rows //= 2
    if what is None or not store.has_room(_bytes(packing.words, rows) * MEMORY_SHARE):
        return None
    store.claim(_bytes(packing.words, rows))
    return Native(what, packing, expander.rows_max, rows)


def _bytes(words: int, table_rows: int) -> int:
    """Memory that is taken, but for the states of a chunk and odds and ends."""
    return 8 * (table_rows * stride_of(words) + ROOM_ROWS * words)


def _aligned(count: int, kind: Any) -> np.ndarray[Any, Any]:
    """So many zeros, from the start of a cache line on."""
    raw = np.zeros(count * np.dtype(kind).itemsize + LANES, np.uint8)
    shift = -raw.ctypes.data % LANES
    return raw[shift : shift + count * np.dtype(kind).itemsize].view(kind)


def _compiled(code: _Expand) -> tuple[Any, Callable[..., int]]:
    """The engine that holds the code, and the function."""
    binding = code.binding
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    module = binding.parse_assembly(str(code.write()))
    module.verify()
    cpu, features = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    target = binding.Target.from_default_triple().create_target_machine(cpu=cpu, features=features, opt=2)
    engine = binding.create_mcjit_compiler(module, target)
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_void_p] * 6)
    return engine, function(engine.get_function_address("expand"))
