"""The commands of this package, as an entry point of the one ``resumark`` command.

``register`` is called whenever the command line is built, so importing this imports neither torch nor anything else
that takes long; the commands import what they need when they run.
"""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this package."""
    from gpu_backend import cli_run, cli_tools, cli_worker

    for part in (cli_run, cli_worker, cli_tools):
        part.register(app)


def group(app: typer.Typer, name: str, help: str) -> typer.Typer:
    """The group of commands of that name: the one that is there, else a new one. Packages share groups this way."""
    for info in app.registered_groups:
        if info.name == name and info.typer_instance is not None:
            return info.typer_instance
    made = typer.Typer(help=help, no_args_is_help=True, pretty_exceptions_enable=False)
    made.callback()(_group_root)
    app.add_typer(made, name=name)
    return made


def _group_root() -> None:
    """Makes the application a group, though it has one command."""
