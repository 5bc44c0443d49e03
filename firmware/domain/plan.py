"""Where everything of a new PV domain goes: the start-of-day layout of xen.h, worked out before memory is
touched.

The order is that of Xen's tools: kernel, ramdisk, frame list, start_info, xenstore page, console page, page
tables, stack, padding to a 4 MiB boundary; then, outside the initial mapping, a ramdisk and a frame list
the kernel takes there.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from firmware.abi import arch_x86, arch_x86_32
from firmware.domain.errors import BuildError, ImageError
from firmware.domain.image import KernelImage
from firmware.domain.tables import Mapping, Tables

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
ALIGNMENT: Final = 4 << 20
"""The initial mapping ends on a multiple of this."""
PADDING: Final = 512 << 10
"""At least so many bytes are mapped after the last bootstrap element."""
CANONICAL: Final = 1 << 47


@dataclass(frozen=True)
class Area:
    """Consecutive pseudo-physical frames."""

    pfn: int
    pages: int

    @property
    def end(self) -> int:
        """The frame after the last."""
        return self.pfn + self.pages


@dataclass
class Plan:
    """The layout of one domain. `mapped_pages` frames from 0 on are mapped from the kernel's VIRT_BASE on."""

    image: KernelImage
    pages: int
    tables: Tables
    mappings: list[Mapping]
    kernel: Area
    ramdisk: Area | None
    ramdisk_mapped: bool
    p2m: Area
    p2m_va: int
    p2m_tables: Area | None
    start_info_pfn: int
    store_pfn: int
    console_pfn: int
    page_tables: Area
    stack_pfn: int
    mapped_pages: int
    needed_pages: int

    def va(self, pfn: int) -> int:
        """The address of a frame of the initial mapping."""
        return self.image.virt_base + (pfn << PAGE_SHIFT)


def make_plan(image: KernelImage, pages: int, ramdisk_size: int) -> Plan:
    """The layout of a domain of so many pages. Raises ImageError or BuildError if there is none."""
    plan = _layout(image, pages, ramdisk_size)
    if plan.needed_pages > pages:
        enough = plan.needed_pages
        while (again := _layout(image, enough, ramdisk_size).needed_pages) > enough:
            enough = again
        raise BuildError(_too_little(image, pages, ramdisk_size, enough))
    return plan


def _too_little(image: KernelImage, pages: int, ramdisk_size: int, enough: int) -> str:
    kernel = image.virt_end - image.virt_base
    what = f"the kernel {image.name} ({_mib(kernel)} MiB)"
    if ramdisk_size:
        what += f" and its ramdisk ({_mib(ramdisk_size)} MiB) need"
    else:
        what += " needs"
    return f"{what} at least {_mib(enough << PAGE_SHIFT)} MiB, and the domain has {pages >> 8} MiB"


def _mib(size: int) -> int:
    return -(-size >> 20)


def _pages(size: int) -> int:
    return -(-size >> PAGE_SHIFT)


def _layout(image: KernelImage, pages: int, ramdisk_size: int) -> Plan:
    if image.virt_base % PAGE_SIZE:
        raise ImageError(image.path, f"its VIRT_BASE {image.virt_base:#x} is not the start of a page")
    at = _pages(image.virt_end - image.virt_base)
    first = image.segments[0].paddr >> PAGE_SHIFT
    kernel = Area(first, at - first)
    ramdisk = None
    mapped = not image.mod_start_pfn
    if ramdisk_size and mapped:
        ramdisk = Area(at, _pages(ramdisk_size))
        at = ramdisk.end
    p2m_pages = _pages(pages * (8 if image.width == 64 else 4))
    apart = _p2m_apart(image)
    p2m = Area(at, p2m_pages)
    if not apart:
        at = p2m.end
    start_info_pfn, store_pfn, console_pfn = at, at + 1, at + 2
    tables = Tables(image.width)
    page_tables, end = _page_tables(image, tables, at + 3)
    _check_range(image, image.virt_base, end)
    mapped_pages = end - image.virt_base >> PAGE_SHIFT
    at = mapped_pages
    if ramdisk_size and not mapped:
        ramdisk = Area(at, _pages(ramdisk_size))
        at = ramdisk.end
    mappings = [Mapping(image.virt_base, end, 0)]
    p2m_va = image.virt_base + (p2m.pfn << PAGE_SHIFT)
    p2m_tables = None
    if apart:
        assert image.init_p2m is not None
        p2m, p2m_va = Area(at, p2m_pages), image.init_p2m
        p2m_end = p2m_va + (p2m_pages << PAGE_SHIFT)
        if p2m_end > image.virt_base:
            raise ImageError(image.path, f"its INIT_P2M address {p2m_va:#x} is too close below its VIRT_BASE")
        _check_range(image, p2m_va, p2m_end)
        missing = tables.missing(p2m_va, p2m_end)
        tables.place(missing, p2m.end)
        p2m_tables = Area(p2m.end, len(missing))
        mappings.append(Mapping(p2m_va, p2m_end, p2m.pfn))
        at = p2m_tables.end
    return Plan(
        image, pages, tables, mappings, kernel, ramdisk, mapped, p2m, p2m_va, p2m_tables, start_info_pfn,
        store_pfn, console_pfn, page_tables, page_tables.end, mapped_pages, at,
    )


def _p2m_apart(image: KernelImage) -> bool:
    """The frame list goes where the kernel asks; Xen's tools ignore what is not a page below VIRT_BASE."""
    base = image.init_p2m
    return image.width == 64 and base is not None and base < image.virt_base and not base % PAGE_SIZE


def _page_tables(image: KernelImage, tables: Tables, pfn: int) -> tuple[Area, int]:
    """Place the tables at `pfn` so that they, the stack and the padding are mapped; and where that ends."""
    extra = 1 + _pages(PADDING)
    count = extra
    while True:
        end = -(-(image.virt_base + (pfn + count << PAGE_SHIFT)) // ALIGNMENT) * ALIGNMENT
        missing = tables.missing(image.virt_base, end)
        count = len(missing) + extra
        if image.virt_base + (pfn + count << PAGE_SHIFT) <= end:
            tables.place(missing, pfn)
            return Area(pfn, len(missing)), end


def _check_range(image: KernelImage, start: int, end: int) -> None:
    """The addresses are ones a guest may map: canonical, and not Xen's."""
    if image.width == 32:
        good = end <= arch_x86_32.HYPERVISOR_VIRT_START
    elif start < CANONICAL:
        good = end <= CANONICAL
    else:
        good = start >= arch_x86.HYPERVISOR_VIRT_END and end <= 1 << 64
    if not good:
        raise ImageError(image.path, f"its place, {start:#x} to {end:#x}, is not a guest's to map")
