"""`python -m xenpy`: the same as the command `xenpy`."""

from __future__ import annotations

import sys

from xenpy.cli import main

if __name__ == "__main__":
    sys.exit(main())
