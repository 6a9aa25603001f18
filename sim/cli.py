"""The one ``resumark`` command.

Its subcommands come from the entry-point group ``resumark.commands``: each entry point is a function
``register(app: typer.Typer) -> None`` that adds commands to the application. This package registers through the same
door (``core = "sim.cli:register"``); where no metadata is installed, as in a bare checkout, it is registered directly.
A package whose commands cannot be loaded costs a warning and its own commands, and nothing else.

Exit codes: 0 holds, 1 a safety property is broken, 2 usage or input error, 3 only a liveness property is broken, 4 no
answer within the bounds. Beside those: 70 for a fault of this program itself (so that it is never taken for a
verdict), 130 when stopped from the keyboard, 141 when whoever read the output went away.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points

import typer

GROUP = "resumark.commands"
"""The entry-point group that commands come from."""

CORE = "sim.cli:register"
"""This package's own entry."""

EXIT_FAULT = 70
EXIT_BROKEN_PIPE = 141


def register(app: typer.Typer) -> None:
    """Add the commands of this package."""
    from sim import (
        cli_agree,
        cli_conform,
        cli_coverage,
        cli_explore,
        cli_model,
        cli_prove,
        cli_run,
        cli_sweep,
        cli_tools,
        cli_trace,
        cli_zoo,
    )

    of_runs = cli_run, cli_zoo, cli_prove, cli_trace, cli_explore, cli_conform
    for part in (*of_runs, cli_model, cli_tools, cli_coverage, cli_sweep, cli_agree):
        part.register(app)


def command_entries() -> list[EntryPoint]:
    """The entry points of all installed packages, this one's first, the others by name; each once."""
    found = {entry.value: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}
    own = found.pop(CORE, None) or EntryPoint("core", CORE, GROUP)
    return [own, *found.values()]


def build_app() -> typer.Typer:
    """The application with every command that is installed."""
    app = typer.Typer(
        name="resumark",
        help="One lifecycle for resumable block transfer, and a simulator that can break it.",
        epilog="Exit codes: 0 holds; 1 a safety property is broken; 2 usage or input error; "
        "3 only a liveness property is broken; 4 the bounds ran out before an answer.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for entry in command_entries():
        try:
            entry.load()(app)
        except Exception as error:
            if entry.value == CORE:
                raise
            print(f"warning: the commands of '{entry.name}' cannot be loaded: {error}", file=sys.stderr)
    return app


def _root() -> None:
    """Makes the application a group, however many commands it has."""


def main() -> None:
    """Run the command line, and end the process with its exit code."""
    try:
        code = _run()
    except BrokenPipeError:
        code = EXIT_BROKEN_PIPE
    if code == EXIT_BROKEN_PIPE:
        # Nobody reads any more: let the interpreter flush what is left into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _run() -> int:
    try:
        try:
            build_app()(prog_name="resumark")
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            # The framework swallows a broken pipe, and would report it as a broken property.
            if type(sys.stdout).__name__ == "PacifyFlushWrapper":
                return EXIT_BROKEN_PIPE
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        print(
            "this is a fault of resumark itself, not a verdict; please report it with the lines above", file=sys.stderr
        )
        return EXIT_FAULT
    return 0


if __name__ == "__main__":
    main()
