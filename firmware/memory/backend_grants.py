"""One domain's grants as the hypervisor's own back ends use them, in the place of domain 0.

A use is what `GNTTABOP_map_grant_ref` with GNTMAP_host_map takes (Xen 4.17, map_grant_ref): the entry must
permit domain 0, its marks are set, the frame is held by a reference, and by a writable type reference unless
the use only reads. So a frame that serves as a page table can never be had for writing. There is no page
table entry: back ends go by the machine address.
"""

from __future__ import annotations

from typing import Final

from firmware.abi.grant_table import GNTST_general_error
from firmware.memory.frames import WRITABLE
from firmware.memory.grants import Grants
from firmware.memory.owner import MemoryOwner
from firmware.memory.types import PageTypes

BACKEND: Final = 0
"""The domain that grants to back ends name."""


class BackendGrants:
    """The uses a back end makes of one domain's grants. `uses` counts those that have not ended."""

    __slots__ = ("_grants", "_owner", "_table", "_types", "uses")

    def __init__(self, grants: Grants, types: PageTypes, owner: MemoryOwner) -> None:
        self._grants = grants
        self._types = types
        self._owner = owner
        self._table = grants.table(owner)
        self.uses = 0

    def take(self, ref: int, *, readonly: bool) -> int:
        """Use the grant `ref`: the machine frame it stands for, or a negative grant status (GNTST_*)."""
        table, types = self._table, self._types
        status, active = self._grants.use(table, ref, BACKEND, readonly=readonly)
        if active is None:
            return status
        mfn = active.mfn
        held = types.get_page(mfn, self._owner)
        if held and not readonly and types.get_type(mfn, WRITABLE):
            types.put_page(mfn)
            held = False
        if not held:
            table.release(ref, active, readonly=readonly)
            return GNTST_general_error
        if readonly:
            active.host_read += 1
        else:
            active.host_write += 1
        self.uses += 1
        return mfn

    def give(self, ref: int, *, readonly: bool) -> None:
        """End a use that `take` began with the same arguments. KeyError when there is none."""
        table = self._table
        active = table.active[ref]
        if readonly:
            active.host_read -= 1
            self._types.put_page(active.mfn)
        else:
            active.host_write -= 1
            self._types.put_page_and_type(active.mfn)
        table.release(ref, active, readonly=readonly)
        self.uses -= 1
