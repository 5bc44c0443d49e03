"""The import check finds each kind of wrong import, and only those."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import import_check


def project(root: Path, files: dict[str, str]) -> list[str]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return import_check.check(root)


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("machine/core.py", "import firmware.abi\n", "machine must not import firmware.abi"),
        ("machine/core.py", "from firmware import abi\n", "machine must not import firmware.abi"),
        ("machine/core.py", "import xenpy\n", "machine must not import xenpy"),
        ("firmware/memory/mmu.py", "from xenpy import cli\n", "firmware must not import xenpy.cli"),
        ("firmware/memory/mmu.py", "def f():\n    import guests\n", "firmware must not import guests"),
        ("xenpy/cli.py", "from tools import bench\n", "xenpy must not import tools.bench"),
        ("tools/a.py", "import tests.support\n", "tools must not import tests.support"),
        ("guests/hello.py", "from firmware import hypercalls\n", "only firmware.abi"),
        ("guests/hello.py", "import machine\n", "guests must not import machine"),
        ("firmware/traps/a.py", "import unicorn\n", "only machine.engine imports unicorn"),
        ("machine/memory.py", "from unicorn.x86_const import UC_X86_REG_RAX\n", "only machine.engine"),
        ("firmware/abi/xen.py", "from firmware.hypercalls import ROWS\n", "firmware.abi must not import"),
        ("firmware/memory/mmu.py", "from firmware import domain\n", "firmware.memory must not import"),
        ("firmware/sched/a.py", "from firmware.traps import bounce\n", "firmware.sched must not import"),
        ("firmware/memory/a.py", "from ..domain import vcpu\n", "firmware.memory must not import"),
        ("firmware/attic.py", "", "firmware.attic is on no floor"),
        ("machine/a.py", "from machine.b import _secret\n", "machine.b._secret is private to machine.b"),
        ("machine/a.py", "from machine import b\nb._secret()\n", "private to machine.b"),
        ("machine/a.py", "import machine.b\nmachine.b._secret()\n", "private to machine.b"),
        ("machine/a.py", "import machine.b as bee\nbee._secret()\n", "private to machine.b"),
        ("guests/a.py", "from firmware.abi import xen\nxen._codec\n", "private to firmware.abi.xen"),
        ("xenpy/a.py", "from machine.engine import _native\n", "private to machine.engine"),
    ],
)
def test_wrong_imports_are_found(tmp_path: Path, path: str, text: str, complaint: str) -> None:
    files = {"machine/engine/_native.py": "", path: text}
    found = project(tmp_path, files)
    assert len(found) == 1, found
    assert found[0].startswith(path)
    assert complaint in found[0]


def test_right_imports_pass(tmp_path: Path) -> None:
    assert project(tmp_path, {
        "machine/engine/_native.py": "import unicorn\n",
        "machine/engine/loader.py": "from machine.engine import _native\nfrom . import _native as again\n",
        "machine/core.py": "from machine.engine import loader\nloader.run()\n",
        "firmware/abi/xen.py": "_mine = 1\nprint(_mine)\n",
        "firmware/memory/mmu.py": "from firmware.hypercalls import ROWS\nfrom .frames import FrameTable\n",
        "firmware/hypervisor.py": "from firmware import domain, traps\nfrom machine import core\n",
        "guests/hello.py": "from firmware.abi import xen\nfrom guests import macros\nxen.__HYPERVISOR_iret\n",
        "xenpy/cli.py": "from firmware import control\nimport guests\nfrom machine.core import Core\n",
        "tools/bench.py": "import xenpy\nclass A:\n    def f(self): return self._x\n",
        "tests/machine/test_core.py": "import unicorn\n",
    }) == []


def test_the_line_is_named(tmp_path: Path) -> None:
    assert project(tmp_path, {"machine/a.py": "x = 1\n\nimport xenpy\n"}) == [
        "machine/a.py:3: machine must not import xenpy"]


def test_the_project_itself_passes() -> None:
    assert import_check.check(Path(__file__).resolve().parents[2]) == []
