"""Ask a C compiler what Xen's public headers say, and write it down for the tests of `firmware.abi`.

    python tools/abi_layouts.py [--headers /usr/include] [--output tests/abi/layouts.json]

Needs gcc (with -m32) and Xen's headers (Debian: libxen-dev), but nothing to link with: every number is a
constant in one object file, read from its data section. Run it when a structure or a constant is added.
"""
from __future__ import annotations

import argparse
import json
import pkgutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from elftools.elf.elffile import ELFFile

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import firmware.abi  # noqa: E402
from firmware.abi.layout import Layout  # noqa: E402

HEADERS: Final = (
    "xen", "event_channel", "vcpu", "sched", "memory", "grant_table", "physdev", "version", "callback",
    "features", "elfnote", "nmi", "platform", "io/console", "io/xs_wire", "io/xenbus", "io/blkif",
    "arch-x86/cpuid", "arch-x86/xen-mca", "trace",
)
NOT_HEADERS: Final = ("layout", "errno", "block_cache")

TYPES: Final = {
    "evtchn_status_interdomain": "typeof(((struct evtchn_status *)0)->u.interdomain)",
    "start_info_console": "typeof(((struct start_info *)0)->console.domU)",
    "grant_entry_v2_full_page": "typeof(((union grant_entry_v2 *)0)->full_page)",
    "grant_entry_v2_sub_page": "typeof(((union grant_entry_v2 *)0)->sub_page)",
    "grant_entry_v2_transitive": "typeof(((union grant_entry_v2 *)0)->transitive)",
}
"""Structures that have no name of their own in the headers."""

FIELDS: Final = {
    "xen_memory_exchange": {"in_": "in"},
    "xencons_interface": {"in_": "in"},
    "evtchn_fifo_control_block": {"rsvd": "_rsvd"},
    "callback_unregister": {"unused": "_unused"},
    "start_info": {"console": "console.domU"},
    "blkif_sring": {"pad": "__pad"},
    "vcpu_register_runstate_memory_area": {"addr": "addr.h"},
    "vcpu_register_time_memory_area": {"addr": "addr.h"},
    "xen_vnuma_topology_info": {field: f"{field}.h" for field in ("vdistance", "vcpu_to_vnode", "vmemrange")},
} | {
    f"grant_entry_v2_{form}": {"flags": "hdr.flags", "domid": "hdr.domid"}
    for form in ("full_page", "sub_page", "transitive")
}
"""Fields that are called otherwise in the headers."""

PADDING: Final = {
    "cpu_user_regs", "evtchn_init_control", "vcpu_register_runstate_memory_area",
    "vcpu_register_time_memory_area", "xen_vnuma_topology_info", "arch_vcpu_info", "vcpu_time_info",
}
"""Structures whose `pad` fields are ours."""

ONLY: Final = {"iret_context": 64, "xen_callback": 32}
"""Structures that only one width has."""

OURS: Final = {
    "memory": ("E820_", "e820entry"),
    "arch_x86": ("TI_", "XEN_EMULATE_PREFIX"),
    "version": ("XEN_COMMANDLINE_LEN", "XEN_DOMAIN_HANDLE_LEN"),
    "io_console": ("INPUT_", "OUTPUT_"),
    "event_channel": ("EVTCHN_2L_",),
    "xen": ("__HYPERVISOR_mca",),
}
"""Names the headers lack, or define outside what a guest may include (hvm/e820.h, xen-mca.h)."""


def modules() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every module that stands for a header, with its public names."""
    for info in pkgutil.iter_modules(firmware.abi.__path__):
        if info.name in NOT_HEADERS:
            continue
        module = import_module(f"firmware.abi.{info.name}")
        yield info.name, {
            name: value
            for name, value in vars(module).items()
            if not (name.startswith("_") and not name.startswith("__HYPERVISOR_"))
            and not any(name.startswith(own) for own in OURS.get(info.name, ()))
        }


def layouts(width: int) -> Iterator[tuple[str, Layout]]:
    """Every structure of one width, once, under "module.name"."""
    seen = set()
    for module, names in modules():
        for name, value in names.items():
            if isinstance(value, Layout) and id(value) not in seen and ONLY.get(name, width) == width:
                seen.add(id(value))
                yield f"{module}.{name}", value


def constants(width: int) -> Iterator[tuple[str, str]]:
    """Every integer constant of one width, as ("module.name", name)."""
    for module, names in modules():
        if (module == "arch_x86_32") == (width == 32):
            for name, value in names.items():
                if isinstance(value, int):
                    yield f"{module}.{name}", name


def questions(width: int) -> dict[str, list[str]]:
    """The C expressions to ask, by what they are about."""
    asked: dict[str, list[str]] = {}
    for key, layout in layouts(width):
        c_type = TYPES.get(layout.name, f"struct {layout.name}")
        asked[key] = [f"sizeof({c_type})", f"__alignof__({c_type})"]
        variant = layout.of(width == 64)
        for field in variant.fields:
            if layout.name in PADDING and field.startswith("pad"):
                continue
            member = FIELDS.get(layout.name, {}).get(field, field)
            place = f"{c_type}, {member}"
            asked[f"{key}/{field}"] = [f"offsetof({place})", f"sizeof((({c_type} *)0)->{member})"]
    for key, name in constants(width):
        asked[f"{key}="] = [name]
    return asked


def answers(asked: dict[str, list[str]], width: int, headers: Path) -> dict[str, list[int]]:
    """What the compiler says, in the order asked."""
    expressions = [expression for group in asked.values() for expression in group]
    source = "#include <stdint.h>\n#include <stddef.h>\n#define __XEN_TOOLS__ 1\n"
    source += "".join(f"#include <xen/{header}.h>\n" for header in HEADERS)
    source += "const long long answers[] __attribute__((section(\".answers\"))) = {\n"
    source += "".join(f"    (long long)({expression}),\n" for expression in expressions) + "};\n"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "answers.o"
        options = [f"-m{width}", "-std=gnu89", "-ffreestanding", "-w", "-I", str(headers)]
        command = ["gcc", *options, "-x", "c", "-c", "-", "-o", str(output)]
        subprocess.run(command, input=source.encode(), check=True)
        section = ELFFile(BytesIO(output.read_bytes())).get_section_by_name(".answers")
    assert section is not None
    data = section.data()
    numbers = iter(struct.unpack(f"<{len(expressions)}q", data))
    return {key: [next(numbers) for _ in group] for key, group in asked.items()}


def main() -> None:
    """Write the answers for both widths as JSON."""
    parser = argparse.ArgumentParser(description="Write down what Xen's headers say.")
    parser.add_argument("--headers", type=Path, default=Path("/usr/include"))
    parser.add_argument("--output", type=Path, default=ROOT / "tests/abi/layouts.json")
    arguments = parser.parse_args()
    lines = []
    for width in (64, 32):
        found = answers(questions(width), width, arguments.headers)
        rows = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in found.items())
        lines.append(f' "{width}": {{\n{rows}\n }}')
    arguments.output.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
