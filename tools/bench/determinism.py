"""The same boot, again and under another PYTHONHASHSEED: blocks and console must not differ by a bit."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools import guests_cache
from tools.bench import process

LIMIT_S: Final = 300.0
MEMORY_MIB: Final = 256
HASH_SEEDS: Final = ("0", "0", "4321")
VCPUS: Final = (1, 4)


@dataclass(frozen=True)
class Fingerprint:
    """What must be equal from run to run."""

    block_hash: str
    blocks: int
    virtual_ns: int
    console_sha256: str


class RunError(Exception):
    """A boot did not come to its end."""


def measure(say: Callable[[str], None]) -> dict[int, list[Fingerprint]]:
    """The fingerprints by number of vCPUs, one for each of HASH_SEEDS. Raises RunError."""
    found: dict[int, list[Fingerprint]] = {}
    with tempfile.TemporaryDirectory(prefix="xenpy-bench-") as scratch:
        for vcpus in VCPUS:
            for turn, seed in enumerate(HASH_SEEDS, 1):
                say(f"same again: {vcpus} vCPUs, {turn}/{len(HASH_SEEDS)}")
                found.setdefault(vcpus, []).append(fingerprint(vcpus, seed, Path(scratch) / "stats.json"))
    return found


def fingerprint(vcpus: int, hash_seed: str, stats: Path) -> Fingerprint:
    """One boot of Debian's kernel and the workload under this PYTHONHASHSEED."""
    kernel, ramdisk = guests_cache.guest_path("vmlinux"), guests_cache.guest_path("workload.cpio")
    if kernel is None or ramdisk is None:
        raise RunError("the kernel has not been fetched: run `make fetch`")
    done = process.run(process.xenpy(
        "boot", str(kernel), "--ramdisk", str(ramdisk), "--memory", str(MEMORY_MIB), "--vcpus", str(vcpus),
        "--cpus", str(vcpus), "--cmdline", "console=hvc0", "--hash", "--stats", str(stats),
    ), LIMIT_S, {"PYTHONHASHSEED": hash_seed})
    if done.status != 0:
        raise RunError(done.why())
    said = json.loads(stats.read_text(encoding="utf-8"))
    return Fingerprint(str(said["block_hash"]), int(said["blocks"]), int(said["virtual_ns"]),
                       hashlib.sha256(done.stdout).hexdigest())
