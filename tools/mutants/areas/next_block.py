"""The block cache in front of the jump cache: what an entry must agree with, and when all of them end.

Not listed: what makes sure that a block's header is one before it is read; and, when an entry is made, that
the TLB shows the page: the frame it shows is the block's then anyway.
"""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

CODE: Final = "machine/engine/stubs.s"

AREA: Final = Area(
    "next block",
    ("tests/machine/test_blocks.py",),
    (
        Mutant(
            "only while the TLB shows the page",
            CODE,
            "cmp [rdx + {TLB_CODE}], rsi\n    jne lookup_miss\n",
            "cmp [rdx + {TLB_CODE}], rsi\n",
        ),
        Mutant(
            "only while the TLB shows the frame",
            CODE,
            "    shl rdx, 12\n    xor rdx, [rax + {BLOCK_EPOCH}]\n    xor rdx, [r10 + 8]\n",
            "    mov rdx, [r10 + 8]\n    and edx, {BLOCK_PLACES} - 1\n",
        ),
        Mutant(
            "only the block of this address",
            CODE,
            "cmp [r10], r11\n    jne lookup_miss\n",
            "cmp [r10], r11\n",
        ),
        Mutant(
            "only while no block was invalidated",
            CODE,
            "    add r9, [rcx + {TCG_INVALIDATIONS}]\n",
            "",
        ),
        Mutant(
            "only while not all blocks were flushed",
            CODE,
            "mov r9d, [rcx + {TCG_FLUSHES}]",
            "xor r9d, r9d",
        ),
        Mutant("no entry outlives 65,536 epochs", CODE, "    rep stosq\n", ""),
        Mutant(
            "only without a code base",
            CODE,
            "cmp qword ptr [rdi + {CS_BASE}], 0\n    jne lookup_original\n",
            "cmp qword ptr [rdi + {CS_BASE}], 0\n",
        ),
        Mutant(
            "only a block in one page",
            CODE,
            "cmp qword ptr [r9 + {TB_FRAMES} + 8], -1\n    jne lookup_done\n",
            "",
        ),
        Mutant(
            "only a block of the frame the TLB shows",
            CODE,
            "cmp rdx, [r9 + {TB_FRAMES}]\n    jne lookup_done\n",
            "",
        ),
        Mutant(
            "not the flags of the block before",
            CODE,
            "    movzx r11d, r11w\n",
            "    mov r11d, 0xc2b3\n",
        ),
    ),
)
