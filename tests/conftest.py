"""How Hypothesis searches: the same cases on every run, unless a developer asks for new ones.

``HYPOTHESIS_PROFILE=dev pytest`` draws fresh cases and remembers the failing ones. ``RESUMARK_EDGES=FILE pytest`` also
counts which rows of the tables the tests take, for ``resumark coverage --tests FILE``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No deadline and no complaint about slow drawing: whole worlds are drawn, on machines of any speed.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)

settings.register_profile("ci", _PATIENT, derandomize=True)
settings.register_profile("dev", _PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config: pytest.Config) -> None:
    """Markers of tests that are left out where edges are counted; and the counting, if it is asked for."""
    config.addinivalue_line("markers", "walks_every_row: takes each row of a table because it is there")
    config.addinivalue_line("markers", "counts_edges: runs what counts the hits of rows")
    file = os.environ.get("RESUMARK_EDGES")
    if file:
        from tests.kit_edges import EdgePlugin

        config.pluginmanager.register(EdgePlugin(config, Path(file).absolute()), "resumark-edges")
