"""How Hypothesis searches: the same cases on every run, unless a developer asks for new ones.

``HYPOTHESIS_PROFILE=dev pytest`` draws fresh cases and remembers the failing ones.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# No deadline and no complaint about slow drawing: whole worlds are drawn, on machines of any speed.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)

settings.register_profile("ci", _PATIENT, derandomize=True)
settings.register_profile("dev", _PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
