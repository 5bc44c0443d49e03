"""How random tests run: the same examples each time and no clock; `make soak` tries many more, new ones."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

SOAK_EXAMPLES = 5_000
COMMON: dict[str, Any] = {
    "deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow],
}

settings.register_profile("test", derandomize=True, **COMMON)
settings.register_profile("soak", max_examples=SOAK_EXAMPLES, **COMMON)
settings.load_profile("soak" if os.environ.get("XENPY_SOAK") else "test")
