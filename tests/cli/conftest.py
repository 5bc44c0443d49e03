from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def xenpy() -> Run:
    """Runs the command in a process of its own, without a keyboard."""

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
        defaults: dict[str, Any] = {"stdin": subprocess.DEVNULL, "timeout": 120}
        if "stdout" not in options:
            defaults["stdout"] = subprocess.PIPE
        if "stderr" not in options:
            defaults["stderr"] = subprocess.PIPE
        command = [sys.executable, "-W", "error", "-m", "xenpy", *map(str, arguments)]
        return subprocess.run(command, check=False, **(defaults | options))

    return run
