"""How errors speak of values and types: as a reader of TOML knows them. Shared by the configuration and the options of
the transports."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from msgspec import Meta


def advice(given: str, places: list[str], known: Collection[str]) -> str:
    """What to write instead of a name that is not known; ``places``: where it would be known."""
    if places:
        return f"but there is {' and '.join(places)}"
    close = difflib.get_close_matches(given, sorted(known), n=1)
    listed = f"expected one of {', '.join(known)}"
    return f"did you mean '{close[0]}'? ({listed})" if close else listed


def shown(value: Any) -> str:
    """A value as a reader of TOML knows it, cut to a length that fits a line."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str):
        text = '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(map(shown, value)) + "]"
    elif isinstance(value, Mapping):
        text = "a section" if value else "{}"
    else:
        text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def meaning(kind: Any) -> str:
    """The description in an annotation."""
    notes = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    return next((note.description for note in notes if isinstance(note, Meta) and note.description), "")


def expected(kind: Any) -> str:
    """A type and its range in words, from the annotation itself."""
    if get_origin(kind) is Annotated:
        base, *notes = get_args(kind)
        meta = [note for note in notes if isinstance(note, Meta)]
        low = next((note.ge for note in meta if note.ge is not None), None)
        above = next((note.gt for note in meta if note.gt is not None), None)
        high = next((note.le for note in meta if note.le is not None), None)
        if any(note.min_length for note in meta):
            return "a string that is not empty"
        if high is None:
            return expected(base)
        start = f"from {low:,}" if above is None else f"above {above:,}, at most"
        return f"{expected(base)} {start} to {high:,}" if above is None else f"{expected(base)} {start} {high:,}"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(shown(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list, each item {expected(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return "a section with keys"
    words: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
    return words[kind]
