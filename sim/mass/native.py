"""Lanes as machine code: a program of nodes, compiled by LLVM for the processor at hand. Needs the extra ``fast``.

A group of lanes is a block of memory that stays in the first level cache: for each column one small number a lane, side
by side, so that one instruction handles 32 or 64 lanes. A round is a straight line of such instructions; a turn that no
lane of the group takes is jumped over. The group takes round after round; a lane whose run is over starts the next run
at once. What comes out is the same as from numpy, bit by bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.mass import draws
from sim.mass.draws import NIBBLES
from sim.mass.program import LaneTurn, Program, Stop, Tally, is_draw
from sim.mass.schedule_parts import FAULTS_LEFT
from sim.vector.code import LANES, Code
from sim.vector.nodes import Node

STOPPED, VIOLATED = 0, 1

Say = Callable[[str], Any] | None
"""Told what is being done."""

HEADER = ("next_run", "runs_end", "seed_key", "digest", "runs", "rounds", "rounds_max", "keep")
"""Words in front of the counters: the next run to start, where to stop, what the seed comes to; the sum of the sealed
digests, and how many runs and rounds there were; patience; whether the digest of each run is kept."""


class Writer(Code):
    """Writes the function of a program in LLVM's language."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.bits, {name: index for index, name in enumerate(program.columns)})
        self.program = program
        self.draw_values: dict[int, Any] = {}

    def read(self, node: Node) -> Any:
        """A column, or what was drawn for this round."""
        return self.draw_values[int(node.value[4:])] if is_draw(node) else super().read(node)

    # --- memory ---------------------------------------------------------------------------------------

    def state(self, index: int) -> Any:
        """Where a column of words lies: 0 the digest, 1 the counter of the draws, 2 the run, 3 its round."""
        at = self.b.gep(self.lanes, [self.ir.Constant(self.i64, index * LANES)])
        return self.b.bitcast(at, self.words.as_pointer())

    def head(self, name: str) -> Any:
        """Where a word of the header lies."""
        return self.b.gep(self.header, [self.word(HEADER.index(name))])

    def counter(self, index: int) -> Any:
        """Where a counter lies."""
        return self.b.gep(self.header, [self.word(len(HEADER) + index)])

    # --- words ----------------------------------------------------------------------------------------

    def mix(self, value: Any, kind: Any) -> Any:
        """As :func:`sim.mass.draws.mix64`, of one word or of many."""
        b = self.b

        def number(n: int) -> Any:
            return self.word(n) if kind is self.i64 else self.constant(n, kind)

        for shift, factor in ((30, draws.FIRST), (27, draws.SECOND)):
            value = b.mul(b.xor(value, b.lshr(value, number(shift))), number(factor))
        return b.xor(value, b.lshr(value, number(31)))

    def draw(self, playing: Any) -> None:
        """The draws of a round. A lane that has no run draws what lets nothing happen."""
        b, place = self.b, self.state(1)
        at = self.load(place)
        byte = self.ir.VectorType(self.ir.IntType(8), LANES)
        rest = self.constant(15, byte)
        idle = b.select(playing, self.constant(0, byte), rest)
        for number in range(self.program.words):
            at = b.add(at, self.constant(draws.STEP, self.words))
            mixed = self.mix(at, self.words)
            for index in range(8):
                part = b.trunc(b.lshr(mixed, self.constant(8 * index, self.words)), byte)
                halves = b.and_(part, rest), b.lshr(part, self.constant(4, byte))
                for side, half in enumerate(halves):
                    half = b.or_(half, idle)
                    drawn = half if self.program.bits == 8 else b.zext(half, self.numbers)
                    self.draw_values[number * NIBBLES + 2 * index + side] = drawn
        self.store(at, place)

    def turn(self, turn: LaneTurn) -> None:
        """One turn; what it does is jumped over if nobody takes it."""
        b = self.b
        self.values = {}
        taken = self.value(turn.taken)
        bits = self.any_of(taken)
        inside, after = b.append_basic_block("taken"), b.append_basic_block("after")
        b.cbranch(b.icmp_unsigned("!=", bits, self.word(0)), inside, after)
        b.position_at_end(inside)
        self.add_to(self.counter(0), self.count(bits))
        for counter, node in turn.counts:
            self.add_to(self.counter(counter), self.count(self.any_of(b.and_(taken, self.value(node)))))
        olds = [self.load(self.column(name)) for name, _ in turn.writes]
        news = [b.select(taken, self.value(node), old) for (_, node), old in zip(turn.writes, olds, strict=True)]
        if turn.decision:
            self.decide(taken, turn.decision)
        for (name, _), new in zip(turn.writes, news, strict=True):
            self.store(new, self.column(name))
        if turn.judged is not self.program.nodes.true:
            self._judge_turn(turn, taken, news)
        b.branch(after)
        b.position_at_end(after)
        self.values = {}

    def _judge_turn(self, turn: LaneTurn, taken: Any, news: Sequence[Any]) -> None:
        b = self.b
        self.values = {}
        for (name, _), new in zip(turn.writes, news, strict=True):
            field = self.program.schedule.model.field(name)
            self.values[self.program.nodes.field(name, field.low, field.high).number] = new
        broken = self.any_of(b.and_(taken, b.not_(self.value(turn.judged))))
        b.store(b.or_(b.load(self.broken), broken), self.broken)

    def decide(self, taken: Any, decision: Sequence[Node]) -> None:
        """Fold a decision into the digests."""
        b = self.b
        shifts = (0, 4, 8, 12, 20, 28, 36)
        fixed = 0
        code: Any = None
        for node, shift in zip(decision, shifts, strict=True):
            if node.op == "const":
                fixed |= (node.value & 255) << shift
                continue
            value = self.value(node)
            if self.program.bits > 8:
                value = b.and_(value, self.constant(255))
            part = b.shl(b.zext(value, self.words), self.constant(shift, self.words))
            code = part if code is None else b.or_(code, part)
        code = self.constant(fixed, self.words) if code is None else b.or_(code, self.constant(fixed, self.words))
        if decision[0].op != "const":
            taken = b.and_(taken, b.icmp_signed("!=", self.value(decision[0]), self.constant(0)))
        place = self.state(0)
        old = self.load(place)
        mixed = b.mul(b.xor(old, code), self.constant(draws.FOLD, self.words))
        mixed = b.xor(mixed, b.lshr(mixed, self.constant(draws.FOLD_SHIFT, self.words)))
        self.store(b.select(taken, mixed, old), place)

    # --- the function ---------------------------------------------------------------------------------

    def write(self) -> Any:
        """The module: one function, ``play(columns, lanes, header, found, kept, rounds)``."""
        ir = self.ir
        module = ir.Module("mass")
        byte, word = self.cell.as_pointer(), self.i64.as_pointer()
        kind = ir.FunctionType(self.i64, [byte, word, word, word, word, self.i64])
        function = ir.Function(module, kind, "play")
        self.columns, self.lanes, self.header, self.found, self.kept, rounds = function.args
        for argument in function.args[:5]:
            argument.add_attribute("noalias")
        self.b = ir.IRBuilder(function.append_basic_block("entry"))
        b = self.b
        entry = b.block
        self.broken = b.alloca(self.i64)
        b.store(self.word(0), self.broken)
        loop, done = b.append_basic_block("round"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        number = b.phi(self.i64)
        number.add_incoming(self.word(0), entry)
        playing = self._playing()
        self.draw(playing)
        for turn in self.program.turns:
            self.turn(turn)
        self._end_of_round(number, rounds, loop, done)
        b.position_at_end(done)
        b.ret(self.word(STOPPED))
        return module

    def _playing(self) -> Any:
        return self.b.icmp_signed("!=", self.load(self.cells(len(self.place))), self.constant(0))

    def _end_of_round(self, number: Any, rounds: Any, loop: Any, done: Any) -> None:
        b = self.b
        self.values = {}
        playing = self._playing()
        ages = b.add(self.load(self.state(3)), b.zext(playing, self.words))
        self.store(ages, self.state(3))
        left = self.load(self.column(FAULTS_LEFT))
        some = b.icmp_signed(">", left, self.constant(0))
        self.store(b.sub(left, b.zext(some, self.numbers)), self.column(FAULTS_LEFT))
        bad = self.any_of(b.and_(playing, b.not_(self.value(self.program.judged()))))
        bad = b.and_(b.or_(bad, b.load(self.broken)), self.any_of(playing))
        over = self.any_of(b.and_(playing, self.value(self.program.over)))
        patient = b.load(self.head("rounds_max"))
        late = b.icmp_signed(">", ages, self.spread(patient))
        lost = b.and_(self.any_of(b.and_(late, playing)), b.not_(over))
        stop, on = b.append_basic_block("stop"), b.append_basic_block("on")
        b.cbranch(b.icmp_unsigned("!=", b.or_(bad, lost), self.word(0)), stop, on)
        b.position_at_end(stop)
        b.store(bad, self.found)
        b.store(lost, b.gep(self.found, [self.word(1)]))
        b.ret(self.word(VIOLATED))
        b.position_at_end(on)
        self._restart(over)
        more = b.add(number, self.word(1))
        number.add_incoming(more, b.block)
        goes_on = b.icmp_unsigned("!=", self.any_of(self._playing()), self.word(0))
        b.cbranch(b.and_(goes_on, b.icmp_unsigned("<", more, rounds)), loop, done)

    def spread(self, scalar: Any) -> Any:
        """One word in all lanes."""
        b, ir = self.b, self.ir
        one = b.insert_element(ir.Constant(self.words, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return b.shuffle_vector(one, one, zeros)

    def _restart(self, over: Any) -> None:
        """Lanes whose run is over: count it, and start the next run there, as long as there is one."""
        b = self.b
        some, each, after = (b.append_basic_block(name) for name in ("some", "each", "clear"))
        end = b.append_basic_block("end")
        b.cbranch(b.icmp_unsigned("!=", over, self.word(0)), some, end)
        b.position_at_end(some)
        fresh = b.bitcast(over, self.truths)
        for name, start in self.program.columns.items():
            if name not in self.program.started and name != FAULTS_LEFT:
                old = self.load(self.column(name))
                self.store(b.select(fresh, self.constant(start), old), self.column(name))
        b.branch(each)
        b.position_at_end(each)
        bits = b.phi(self.i64)
        bits.add_incoming(over, some)
        self._next_run(b.cttz(bits, self.ir.Constant(self.i1, 1)))
        left = b.and_(bits, b.sub(bits, self.word(1)))
        bits.add_incoming(left, b.block)
        b.cbranch(b.icmp_unsigned("!=", left, self.word(0)), each, after)
        b.position_at_end(after)
        b.branch(end)
        b.position_at_end(end)

    def _next_run(self, lane: Any) -> None:
        b = self.b

        def of(index: int) -> Any:
            return b.gep(self.lanes, [b.add(lane, self.word(index * LANES))])

        digest, run = b.load(of(0)), b.load(of(2))
        sealed = b.add(b.mul(run, self.word(draws.STEP)), self.word(draws.HEAD))
        self.add_to(self.head("digest"), self.mix(b.xor(digest, self.mix(sealed, self.i64)), self.i64))
        self.add_to(self.head("runs"), self.word(1))
        self.add_to(self.head("rounds"), b.load(of(3)))
        with b.if_then(b.icmp_unsigned("!=", b.load(self.head("keep")), self.word(0))):
            b.store(digest, b.gep(self.kept, [run]))
        fresh = b.load(self.head("next_run"))
        goes_on = b.icmp_unsigned("<", fresh, b.load(self.head("runs_end")))
        b.store(b.add(fresh, b.zext(goes_on, self.i64)), self.head("next_run"))
        key = b.add(b.mul(fresh, self.word(draws.RUN_STEP)), b.load(self.head("seed_key")))
        key = self.mix(key, self.i64)
        for index, value in enumerate((self.word(0), key, fresh, self.word(0))):
            b.store(value, of(index))
        drawn = self.mix(b.xor(key, self.word(draws.HEAD)), self.i64)
        starts = self.word(len(self.program.schedule.model.initial))
        start = b.lshr(b.mul(b.and_(drawn, self.word(0xFFFF)), starts), self.word(16))
        rounds = b.and_(b.lshr(drawn, self.word(16)), self.word(31))
        shaken = b.and_(b.lshr(rounds, self.word(4)), self.word(1))
        faults = b.mul(shaken, b.shl(b.add(b.and_(rounds, self.word(15)), self.word(1)), self.word(1)))
        faults = b.select(goes_on, faults, self.word(0))
        for name in self.program.started:
            self._put(self.place[name], lane, start)
        self._put(self.place[FAULTS_LEFT], lane, faults)
        self._put(len(self.place), lane, b.zext(goes_on, self.i64))

    def _put(self, column: int, lane: Any, value: Any) -> None:
        b = self.b
        b.store(b.trunc(value, self.cell), b.gep(self.columns, [b.add(lane, self.word(column * LANES))]))


class Native:
    """A group of lanes. ``play`` goes on for so many rounds, or to the first violation."""

    def __init__(self, program: Program, say: Say = None) -> None:
        self.program = program
        self._engine, self._play = compiled(program, say)
        kind = np.int8 if program.bits == 8 else np.int16
        width = len(program.columns) + 1
        self.columns = _aligned((width, LANES), kind)
        self.lanes = _aligned((4, LANES), np.uint64)
        self.header = np.zeros(len(HEADER) + len(program.counters), np.uint64)
        self.found = np.zeros(2, np.uint64)
        self.kept = np.zeros(1, np.uint64)

    def start(self, seed: int, runs: int, *, keep: bool = False) -> None:
        """Begin a batch."""
        program = self.program
        key = draws.seed_key(seed)
        self.header[:] = 0
        values = {"next_run": min(runs, LANES), "runs_end": runs, "seed_key": key,
                  "rounds_max": program.schedule.rounds_max, "keep": int(keep)}  # fmt: skip
        for name, value in values.items():
            self.header[HEADER.index(name)] = value
        self.kept = np.zeros(runs if keep else 1, np.uint64)
        numbers = np.arange(LANES, dtype=np.uint64)
        keys = draws.run_key(key, numbers)
        drawn = draws.head(keys, len(program.schedule.model.initial))
        playing = numbers < runs
        for index, (name, first) in enumerate(program.columns.items()):
            if name in program.started:
                self.columns[index] = drawn.start
            elif name == FAULTS_LEFT:
                self.columns[index] = np.where(playing, drawn.faults, 0)
            else:
                self.columns[index] = first
        self.columns[-1] = playing
        self.lanes[0], self.lanes[1], self.lanes[2], self.lanes[3] = 0, keys, numbers, 0

    def play(self, rounds: int) -> Stop | None:
        """Go on for so many rounds, or to the first violation."""
        pointers = [
            ctypes.c_void_p(array.ctypes.data)
            for array in (self.columns, self.lanes, self.header, self.found, self.kept)
        ]
        if self._play(*pointers, rounds) == STOPPED:
            return None
        runs = [int(run) for run in self.lanes[2]]
        broken, late = ([runs[lane] for lane in range(LANES) if int(bits) >> lane & 1] for bits in self.found)
        return Stop(broken, late)

    def stop_at(self, run: int) -> None:
        """Go on with the runs before this one only."""
        end = HEADER.index("runs_end")
        self.header[end] = min(int(self.header[end]), run)
        self.columns[-1][self.lanes[2] >= np.uint64(run)] = 0

    @property
    def playing(self) -> bool:
        """Whether any run goes on."""
        return bool(self.columns[-1].any())

    def tally(self) -> Tally:
        """What came of it so far."""
        read = {name: int(value) for name, value in zip(HEADER, self.header, strict=False)}
        counts = {name: int(self.header[len(HEADER) + index]) for index, name in enumerate(self.program.counters)}
        return Tally(read["runs"], read["rounds"], read["digest"], counts)


def _aligned(shape: tuple[int, int], kind: Any) -> NDArray[Any]:
    """An array that starts at a multiple of a cache line."""
    count = shape[0] * shape[1] * np.dtype(kind).itemsize
    raw = np.zeros(count + LANES, np.uint8)
    shift = -raw.ctypes.data % LANES
    aligned: NDArray[Any] = raw[shift : shift + count].view(kind).reshape(shape)
    return aligned


def compiled(program: Program, say: Say = None) -> tuple[Any, Callable[..., int]]:
    """The engine that holds the code, and the function; this takes seconds. ``say`` is told what is under way."""
    say = say or (lambda text: None)
    writer = Writer(program)
    binding = writer.binding
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    say("writing it down")
    written = str(writer.write())
    say("reading it")
    module = binding.parse_assembly(written)
    module.verify()
    say("choosing instructions")
    cpu, features = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    target = binding.Target.from_default_triple().create_target_machine(cpu=cpu, features=features, opt=1)
    engine = binding.create_mcjit_compiler(module, target)
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_void_p] * 5, ctypes.c_int64)
    return engine, function(engine.get_function_address("play"))
