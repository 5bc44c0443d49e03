from __future__ import annotations

from xenpy.pytest_plugin import machine

__all__ = ["machine"]
