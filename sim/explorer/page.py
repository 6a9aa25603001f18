"""What a page of the explorer knows: plain records, written as JSON into the file and read there by its script.

A run is told by *changes*. Step 0 is the state before anything happened; each later step holds only what it changed,
and the page adds them up. A state graph is told in the same way: an edge is a step that leads from one node to another,
so that a path which a reader chooses is shown by the same code as a recorded run.

The records say nothing of how they are drawn. ``sim/explorer/web/src/types.ts`` mirrors them field by field, and a test
holds the two against each other.
"""

from __future__ import annotations

from msgspec import Struct

PAGE_VERSION = 1
"""Of these records; the script refuses another."""


class Lane(Struct, frozen=True):
    """A process that a sequence diagram has a line for. ``side`` is ``"sender"`` or ``"receiver"``; the network lies
    between the two."""

    name: str
    """Such as ``"sender 0"``; what other records call it by."""
    side: str
    rank: int


class Pool(Struct, frozen=True):
    """The landing blocks of one receiver rank."""

    rank: int
    blocks: int
    block_tokens: int


class Request(Struct, frozen=True):
    """A request; ``tokens`` is its length, -1 where nobody saw it."""

    room: int
    tokens: int


class Said(Struct, frozen=True):
    """What a process did in a step, in words. ``room`` is -1 where it concerns none."""

    lane: str
    room: int
    text: str


class Arrow(Struct, frozen=True):
    """One end of something on its way from lane to lane.

    ``what`` is ``"message"`` or ``"bytes"``. ``end`` says which end this is: ``"leave"`` (sent, or a write begun),
    ``"copy"`` (a duplicate leaves the network's hands: one more is under way), ``"hold"`` (others may overtake it),
    ``"arrive"``, ``"lose"`` (it never arrives). An arrival belongs to the earliest departure that is still open with
    the same ``what``, ``source``, ``target`` and ``text``.
    """

    what: str
    end: str
    source: str
    target: str
    room: int
    label: str
    """Short, to stand at the arrow: ``"GRANT 1 [8,16)"``, ``"[0,8)"``."""
    text: str
    """All of it: every field of the message, or the blocks that are written."""


class Block(Struct, frozen=True, omit_defaults=True):
    """The record of a landing block from this step on. ``state`` is one of ``fsm.states.BlockState``; what it is
    granted for (``room``, ``seq``, first token ``start``) is -1 where there is none; ``holds`` is what its memory
    holds, in words, empty where that is not known. ``through``: states that it was in within this step before, each
    with its room."""

    rank: int
    block: int
    state: str
    generation: int
    room: int = -1
    seq: int = -1
    start: int = -1
    tokens: int = 0
    """How many tokens of the grant this block is for."""
    holds: str = ""
    through: tuple[tuple[str, int], ...] = ()


class Touch(Struct, frozen=True, omit_defaults=True):
    """Memory of a block was written (``"write"``) or copied out (``"read"``) in this step. ``wrong`` says what is bad
    about it: bytes that landed where they may not (I1), or a read of what was not there (yet). ``early``: what was read
    had not been written."""

    rank: int
    block: int
    what: str
    room: int
    start: int
    count: int
    wrong: str = ""
    early: bool = False


class Progress(Struct, frozen=True, omit_defaults=True):
    """Tokens of a room at a receiver rank from this step on: granted up to (exclusive), landed without a gap, the
    watermark, and copied out."""

    rank: int
    room: int
    epoch: str
    """Which attempt at the room this is: the receiver's boot id and a counter, such as ``"1.2"``."""
    granted: int = 0
    landed: int = 0
    watermark: int = 0
    delivered: int = 0


class Lifecycle(Struct, frozen=True, omit_defaults=True):
    """A lifecycle's state from this step on; a sender has one for each receiver rank (``rank``). ``event`` is the
    table's event that led here, empty for what was so from the start."""

    lane: str
    rank: int
    room: int
    state: str
    source: str = ""
    event: str = ""
    reason: str = ""
    """Why it failed, if it did."""


class Step(Struct, frozen=True, omit_defaults=True):
    """One step and all that it changed. ``action`` is its kind (empty for step 0), ``text`` the same in words.

    ``skipped``: in the second of two runs, a step of the first that this version could not take. ``extra``: one that
    the first run does not have. ``seen``: the file and line of a worker's trace that tells it, such as
    ``"sender-0.jsonl:12"``.
    """

    number: int
    action: str = ""
    text: str = ""
    time_s: float = 0.0
    fault: bool = False
    skipped: bool = False
    extra: bool = False
    seen: str = ""
    said: tuple[Said, ...] = ()
    arrows: tuple[Arrow, ...] = ()
    blocks: tuple[Block, ...] = ()
    touches: tuple[Touch, ...] = ()
    progress: tuple[Progress, ...] = ()
    lifecycles: tuple[Lifecycle, ...] = ()


class Mark(Struct, frozen=True, omit_defaults=True):
    """A step worth jumping to. ``kind`` is ``"violation"``, ``"no-return"``, ``"resume"``, ``"fault"``, ``"cycle"``
    (here what repeats for ever begins), ``"inferred"`` (what no trace shows, concluded)."""

    kind: str
    step: int
    text: str
    property: str = ""
    room: int = -1


class Run(Struct, frozen=True, omit_defaults=True):
    """One run. ``origin`` is the engine that found it, ``"guided"`` for a second version on the same choices, or
    ``"worker"``; ``command`` makes it again. ``verdict`` is ``"violated"`` or ``"holds"``."""

    name: str
    origin: str
    verdict: str
    command: str
    facts: tuple[tuple[str, str], ...]
    lanes: tuple[Lane, ...]
    pools: tuple[Pool, ...]
    requests: tuple[Request, ...]
    steps: tuple[Step, ...]
    marks: tuple[Mark, ...] = ()
    machine: str = "receiver"
    """Which of :attr:`Page.machines` its receivers' lifecycles are."""


class Move(Struct, frozen=True):
    """A row of a lifecycle's table, as an edge of its diagram."""

    source: str
    event: str
    guard: str
    target: str


class Machine(Struct, frozen=True):
    """A lifecycle as a diagram: every state, and every row that leads somewhere."""

    name: str
    initial: str
    states: tuple[str, ...]
    terminal: tuple[str, ...]
    moves: tuple[Move, ...]


class Edge(Struct, frozen=True, omit_defaults=True):
    """A choice: the step that it takes and the node after it. ``broken`` names the properties that it breaks; nothing
    follows then. Edges stand in the order of their sources, and of one source in the order in which it offers them."""

    source: int
    target: int
    choice: int
    """Index into :attr:`Graph.choices`."""
    step: int
    """Index into :attr:`Graph.steps`."""
    broken: tuple[str, ...] = ()
    broken_text: str = ""


class Standstill(Struct, frozen=True):
    """A node where nothing can happen any more, and that is wrong."""

    node: int
    property: str
    text: str


class Graph(Struct, frozen=True, omit_defaults=True):
    """The states of a small scenario. Node 0 is the first state. ``complete``: every state is here; else every one that
    at most ``depth`` other choices lead to from the first run, and some beyond."""

    nodes: int
    expanded: int
    """The choices of nodes below this number are here; those from it on were not looked into any more, so that nothing
    is known of what follows them."""
    steps: tuple[Step, ...]
    """What the edges do, each written once. Their ``number`` is 0, and ``time_s`` is how long they take (in a run it is
    the time of day)."""
    edges: tuple[Edge, ...]
    choices: tuple[str, ...]
    """Every action that some state offers, in words; those that a state does not offer are shown greyed."""
    path: tuple[int, ...]
    """The node after each step of the first run, step 0 included; -1 once it has left the graph."""
    complete: bool
    depth: int
    ends: tuple[int, ...] = ()
    """Nodes where a run ends and nothing is wrong."""
    standstills: tuple[Standstill, ...] = ()


class Page(Struct, frozen=True):
    """A whole page."""

    version: int
    title: str
    runs: tuple[Run, ...]
    """One, or two to be shown side by side."""
    properties: dict[str, str]
    """Every property by name, in words."""
    machines: tuple[Machine, ...]
    """``receiver``, ``sender`` and ``block``; and ``receiver (five states)`` where a run is of a version that has that
    one (see :attr:`Run.machine`)."""
    graph: Graph | None = None
