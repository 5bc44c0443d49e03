"""Where things are in a core's register file (`Core.q`, 64-bit words; `Core.d`, 32-bit words).

The register file is QEMU's `CPUX86State` (target/i386/cpu.h); `machine.engine.selftest` checks these indices.
Names without a suffix index `q`; those that index `d` say so.
"""

from __future__ import annotations

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
R8, R9, R10, R11, R12, R13, R14, R15 = range(8, 16)
RIP = 16
EFLAGS = 17  # without the arithmetic flags and DF: use Core.eflags()
CC_SRC = 19

CC_OP = 42  # d
DF = 43  # d: 1 or -1
HFLAGS = 44  # d

ES, CS, SS, DS, FS, GS, LDT, TR, GDT, IDT = range(10)
_SEGMENT = 184
_SEGMENT_SIZE = 24
SEG_SELECTOR = tuple((_SEGMENT + _SEGMENT_SIZE * n) // 4 for n in range(10))  # d
SEG_BASE = tuple((_SEGMENT + _SEGMENT_SIZE * n + 8) // 8 for n in range(10))
SEG_LIMIT = tuple((_SEGMENT + _SEGMENT_SIZE * n + 16) // 4 for n in range(10))  # d
SEG_FLAGS = tuple((_SEGMENT + _SEGMENT_SIZE * n + 20) // 4 for n in range(10))  # d: descriptor's second word

CS_SELECTOR, SS_SELECTOR, DS_SELECTOR = SEG_SELECTOR[CS], SEG_SELECTOR[SS], SEG_SELECTOR[DS]  # d
ES_SELECTOR, FS_SELECTOR, GS_SELECTOR = SEG_SELECTOR[ES], SEG_SELECTOR[FS], SEG_SELECTOR[GS]  # d
CS_BASE, SS_BASE, DS_BASE, ES_BASE = SEG_BASE[CS], SEG_BASE[SS], SEG_BASE[DS], SEG_BASE[ES]
FS_BASE, GS_BASE = SEG_BASE[FS], SEG_BASE[GS]
CS_FLAGS, SS_FLAGS = SEG_FLAGS[CS], SEG_FLAGS[SS]  # d
LDT_SELECTOR, LDT_LIMIT, LDT_FLAGS = SEG_SELECTOR[LDT], SEG_LIMIT[LDT], SEG_FLAGS[LDT]  # d
LDT_BASE = SEG_BASE[LDT]
GDT_LIMIT = SEG_LIMIT[GDT]  # d
GDT_BASE = SEG_BASE[GDT]

CR0, CR1, CR2, CR3, CR4 = range(53, 58)
EFER = 74
KERNEL_GS_BASE = 608
TSC_AUX = 612
ERROR_CODE = 1346  # d
EXCEPTION_IS_INT = 1347  # d
EXCEPTION_NEXT_EIP = 674
DR0, DR1, DR2, DR3, DR4, DR5, DR6, DR7 = range(675, 683)
OLD_EXCEPTION = 1374  # d: the exception a second fault would double; -1 when none

STATE_SIZE = 5464  # bytes up to and with dr[7]: all that is architectural, no pointers
FILE_SIZE = 5504  # bytes the views cover

# hflags: what translated code depends on (HF_* of QEMU)
HF_CPL = 3
HF_CS32 = 1 << 4
HF_SS32 = 1 << 5
HF_ADDSEG = 1 << 6
HF_PE = 1 << 7
HF_TS = 1 << 11
HF_LMA = 1 << 14
HF_CS64 = 1 << 15
HF_OSFXSR = 1 << 22

# Descriptor bits, second word (Intel SDM volume 3, 3.4.5)
DESC_L = 1 << 21
DESC_B = 1 << 22
DESC_G = 1 << 23
DESC_P = 1 << 15
DESC_S = 1 << 12
DESC_DPL_SHIFT = 13

# EFLAGS (Intel SDM volume 1, 3.4.3)
FLAG_CF, FLAG_FIXED, FLAG_PF, FLAG_AF, FLAG_ZF, FLAG_SF = 1 << 0, 1 << 1, 1 << 2, 1 << 4, 1 << 6, 1 << 7
FLAG_TF, FLAG_IF, FLAG_DF, FLAG_OF = 1 << 8, 1 << 9, 1 << 10, 1 << 11
FLAG_IOPL, FLAG_NT, FLAG_RF, FLAG_VM, FLAG_AC = 3 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 18
FLAG_VIF, FLAG_VIP, FLAG_ID = 1 << 19, 1 << 20, 1 << 21
FLAGS_IN_BLOCKS = FLAG_TF | FLAG_IOPL | FLAG_RF | FLAG_VM | FLAG_AC  # besides hflags, in a block's key
FLAGS_ARITHMETIC = FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF

# Control registers and EFER (Intel SDM volume 3, 2.5 and 2.2.1)
CR0_PE, CR0_MP, CR0_EM, CR0_TS, CR0_ET, CR0_NE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
CR0_WP, CR0_AM, CR0_PG = 1 << 16, 1 << 18, 1 << 31
CR4_TSD, CR4_PSE, CR4_PAE, CR4_PGE, CR4_OSFXSR, CR4_OSXMMEXCPT = (
    1 << 2,
    1 << 4,
    1 << 5,
    1 << 7,
    1 << 9,
    1 << 10,
)
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1 << 0, 1 << 8, 1 << 10, 1 << 11

# Vectors (Intel SDM volume 3, table 6-1)
VECTOR_DE, VECTOR_DB, VECTOR_BP, VECTOR_OF, VECTOR_UD, VECTOR_NM = 0, 1, 3, 4, 6, 7
VECTOR_GP, VECTOR_PF = 13, 14
