# Native stubs, Intel syntax, position independent. {NAME} is filled in by stubs.py.
# Each runs as a C function: rdi rsi rdx rcx r8 r9 in, rax out, caller-saved registers free.
# Where the CPUState's opaque pointer is NULL the state is not ours: behave as the original.

# Block entry, in place of helper_check_exit_request(uc, from_memory_access). rbp is env in translated code.
# Takes one unit from the budget; at 0 (or on an exit request, high half negative) the block does not run.
# Every block begins with 17 bytes for this call: movabs rdi, uc; xor esi, esi; call. The first time a block calls, they become
# sub dword ptr [rbp - 16], 1; jns behind the call; nops; call check_inline_end: from then on the block takes its unit itself.
check:
    sub dword ptr [rbp - {ENV_ICOUNT}], 1
    js check_end
    mov rax, [rsp]
    cmp word ptr [rax - 17], 0xbf48
    jne check_done
    cmp word ptr [rax - 7], 0xf633
    jne check_done
    cmp byte ptr [rax - 5], 0xe8
    jne check_done
    lea rcx, [rip + check_inline_end]
    sub rcx, rax
    mov dword ptr [rax - 4], ecx
    movabs rdx, {INLINE_CHECK}
    mov qword ptr [rax - 17], rdx
    mov dword ptr [rax - 9], {INLINE_PADDING}
check_done:
    ret
check_inline_end:
    mov rdi, [rbp - {ENV_OWNER}]
check_end:
    add dword ptr [rbp - {ENV_ICOUNT}], 1
    cmp dword ptr [rbp - {ENV_ICOUNT}], 0
    jne check_leave
    push rdi
    movabs rax, {UC_EMU_STOP}
    call rax
    pop rdi
check_leave:
    xor esi, esi
    movabs rax, {CHECK_EXIT_REQUEST}
    jmp rax

# The same, folding (core, pc) of every block that runs into the machine's hash. The TranslationBlock lies in front of its
# code, which starts on a cache line and calls this stub within that line; its tc.ptr proves the guess.
    .balign 16
hash_check:
    sub dword ptr [rbp - {ENV_ICOUNT}], 1
    js check_end
    mov r8, [rbp - {ENV_OPAQUE}]
    mov r9, [r8 + {SHARED}]
    mov rax, [rsp]
    and rax, -64
    lea rcx, [rax - {TB_HEADER}]
    cmp [rcx + {TB_CODE}], rax
    jne hash_search
hash_fold:
    mov rdx, [rcx]
    xor rdx, [r8 + {KEY}]
    xor rdx, [r9 + {HASH}]
    movabs rcx, 0x9e3779b97f4a7c15
    imul rdx, rcx
    mov rcx, rdx
    shr rcx, 29
    xor rdx, rcx
    mov [r9 + {HASH}], rdx
    ret
hash_search:
    inc qword ptr [r9 + {LOOKUPS}]
    mov rsi, [rsp]
    push r8
    push r9
    sub rsp, 8
    mov rdi, [rdi + {TCG_CONTEXT}]
    movabs rax, {TB_LOOKUP}
    call rax
    mov rcx, rax
    add rsp, 8
    pop r9
    pop r8
    jmp hash_fold

# BLOCK hook (uc, pc, size, data) of the degraded mode: the same budget, without interposition. It runs in front of the exit
# check of the block, so an exit request pending here (high half negative) means that the block will not run.
    .balign 16
block_hook:
    mov r8, [rdi + {CPU_SLOT}]
    sub dword ptr [r8 + {ICOUNT}], 1
    js block_end
    mov r8, [r8 + {OPAQUE}]
    mov r9, [r8 + {SHARED}]
    xor rsi, [r8 + {KEY}]
    xor rsi, [r9 + {HASH}]
    movabs rcx, 0x9e3779b97f4a7c15
    imul rsi, rcx
    mov rcx, rsi
    shr rcx, 29
    xor rsi, rcx
    mov [r9 + {HASH}], rsi
    ret
block_end:
    add dword ptr [r8 + {ICOUNT}], 1
    cmp dword ptr [r8 + {ICOUNT}], 0
    jne block_pending
    movabs rax, {UC_EMU_STOP}
    jmp rax
block_pending:
    ret

# RDTSC hook (uc, data): edx:eax = the core's time, base + blocks executed * rate. Then the cost goes to the base, and the
# blocks that would have fitted into it leave the budget (and what the chunk will have executed): rounded up, so that a slice
# never ends late; Core.run goes on when it ends early. Returns 1: the instruction is done.
    .balign 16
rdtsc:
    mov r8, [rdi + {CPU_SLOT}]
    mov r9, [r8 + {OPAQUE}]
    movzx eax, word ptr [r8 + {ICOUNT}]
    mov rdx, [r9 + {CHUNK}]
    sub rdx, rax
    imul rdx, [r9 + {RATE}]
    shr rdx, {RATE_SHIFT}
    add rdx, [r9 + {BASE}]
    mov ecx, edx
    mov [r8 + {ENV}], rcx
    shr rdx, 32
    mov [r8 + {ENV} + 16], rdx
    inc qword ptr [r9 + {TSC_READS}]
    mov rcx, [r9 + {TSC_UNITS}]
    cmp rax, rcx
    cmovb rcx, rax
    sub word ptr [r8 + {ICOUNT}], cx
    sub [r9 + {CHUNK}], rcx
    add qword ptr [r9 + {BASE}], {TSC_NS}
    mov eax, 1
    ret

# RDTSCP hook: the same, and ecx = TSC_AUX.
    .balign 16
rdtscp:
    mov r8, [rdi + {CPU_SLOT}]
    mov ecx, [r8 + {ENV} + {TSC_AUX}]
    mov [r8 + {ENV} + 8], rcx
    jmp rdtsc

# IN hook (uc, port, size, data) and OUT hook (uc, port, size, value, data): #GP(0) at the instruction, unless the core's
# ports are open, a kernel runs (bank 0; in 32-bit mode not ring 3) and the port is none the firmware models: then ones are
# read and nothing is written.
    .balign 16
port:
    mov rdi, [rdi + {CPU_SLOT}]
    mov r9, [rdi + {OPAQUE}]
    cmp qword ptr [r9 + {OPEN_PORTS}], 0
    je port_fault
    cmp qword ptr [rdi + {BANK_TAG}], 0
    jne port_fault
    mov eax, dword ptr [rdi + {ENV} + {HFLAGS}]
    and eax, {LMA_AND_CPL}
    cmp eax, 3
    je port_fault
    movzx eax, si
    and eax, {RTC_MASK}
    cmp eax, {RTC_PORTS}
    je port_fault
    movzx eax, si
    and eax, {PCI_MASK}
    cmp eax, {PCI_PORTS}
    je port_fault
    mov eax, 0xffffffff
    ret
port_fault:
    add rdi, {ENV}
    mov esi, 13
    xor edx, edx
    movabs rax, {RAISE_EXCEPTION_ERR}
    jmp rax

# SYSCALL hook (uc, callback): RCX and R11 as the processor sets them, RIP behind the instruction for the callback; the emulated
# instruction still adds its size to whatever RIP holds then. The arithmetic flags are left computed. In the kernel bank, when
# the core has a word for it, the machine's native handler is asked first: handler(env, word), 1: it is done.
    .balign 16
syscall:
    push rbx
    push rbp
    sub rsp, 8
    mov rbx, [rdi + {CPU_SLOT}]
    mov rbp, rsi
    lea rdi, [rbx + {ENV}]
    movabs rax, {READ_EFLAGS}
    call rax
    mov [rbx + {ENV} + {R11}], rax
    and eax, {FLAGS_ARITHMETIC}
    mov [rbx + {ENV} + {CC_SRC}], rax
    mov dword ptr [rbx + {ENV} + {CC_OP}], 1
    mov rax, [rbx + {ENV} + {RIP}]
    add rax, 2
    mov [rbx + {ENV} + {RIP}], rax
    mov [rbx + {ENV} + 8], rax
    mov rax, [rbx + {OPAQUE}]
    mov rsi, [rax + {NATIVE}]
    test rsi, rsi
    jz syscall_callback
    cmp qword ptr [rbx + {BANK_TAG}], 0
    jne syscall_callback
    mov rax, [rax + {SHARED}]
    lea rdi, [rbx + {ENV}]
    call qword ptr [rax + {NATIVE_SYSCALL}]
    test eax, eax
    jnz syscall_done
syscall_callback:
    call rbp
syscall_done:
    sub qword ptr [rbx + {ENV} + {RIP}], 2
    add rsp, 8
    pop rbp
    pop rbx
    ret

# INTR hook (uc, vector, callback): the callback with the flags computed and no fault left to be doubled. Its cost is taken as
# that of RDTSC: at least a block of the budget, so a guest whose handler cannot even be fetched uses up its slice like any other.
    .balign 16
interrupt:
    push rbx
    push rbp
    push r12
    mov rbx, [rdi + {CPU_SLOT}]
    mov ebp, esi
    mov r12, rdx
    mov rax, [rbx + {OPAQUE}]
    movzx ecx, word ptr [rbx + {ICOUNT}]
    mov rdx, [rax + {EXCEPTION_UNITS}]
    cmp rcx, rdx
    cmovb rdx, rcx
    sub word ptr [rbx + {ICOUNT}], dx
    sub [rax + {CHUNK}], rdx
    add qword ptr [rax + {BASE}], {EXCEPTION_NS}
    mov dword ptr [rbx + {ENV} + {OLD_EXCEPTION}], -1
    lea rdi, [rbx + {ENV}]
    movabs rax, {READ_EFLAGS}
    call rax
    and eax, {FLAGS_ARITHMETIC}
    mov [rbx + {ENV} + {CC_SRC}], rax
    mov dword ptr [rbx + {ENV} + {CC_OP}], 1
    mov edi, ebp
    call r12
    pop r12
    pop rbp
    pop rbx
    ret

# MEM_WRITE_PROT hook of the degraded mode: never allowed. Its presence alone keeps every store entry slow.
    .balign 16
refuse:
    xor eax, eax
    ret

# tlb_protect_code(uc, ram address): the frame holds code from now on; every core's entries for it become slow.
    .balign 16
protect:
    mov rax, [rdi + {CPU_SLOT}]
    mov rax, [rax + {OPAQUE}]
    test rax, rax
    jz protect_original
    mov rax, [rax + {SHARED}]
    cmp qword ptr [rax + {COHERENT}], 0
    jne protect_ours
protect_original:
    movabs rax, {TLB_PROTECT_CODE}
    jmp rax
protect_ours:
    push rbx
    push rbp
    push r12
    mov rbx, rax
    mov rax, rsi
    shr rax, 12
    inc qword ptr [rbx + {PROTECTED}]
    cmp rax, [rbx + {FRAMES}]
    jae protect_entries
    mov rcx, [rbx + {CODE}]
    mov byte ptr [rcx + rax], 1
protect_entries:
    mov r12, rsi
    and r12, -4096
    add r12, [rbx + {RAM}]
    xor ebp, ebp
protect_next:
    cmp rbp, [rbx + {CPUS}]
    jae protect_done
    mov rdi, [rbx + rbp * 8 + {FIRST_CPU}]
    mov rsi, r12
    mov edx, 4096
    movabs rax, {TLB_RESET_DIRTY}
    call rax
    inc rbp
    jmp protect_next
protect_done:
    pop r12
    pop rbp
    pop rbx
    ret

# tlb_unprotect_code(uc, ram address): the last block of the frame is gone. The original does nothing.
    .balign 16
unprotect:
    mov rcx, [rdi + {CPU_SLOT}]
    mov rcx, [rcx + {OPAQUE}]
    test rcx, rcx
    jz unprotect_done
    mov rcx, [rcx + {SHARED}]
    cmp qword ptr [rcx + {COHERENT}], 0
    je unprotect_done
    shr rsi, 12
    cmp rsi, [rcx + {FRAMES}]
    jae unprotect_done
    mov rcx, [rcx + {CODE}]
    mov byte ptr [rcx + rsi], 0
unprotect_done:
    ret

# tlb_set_dirty(cpu, va): after a slow store. An entry becomes fast only when its own frame holds no code.
    .balign 16
set_dirty:
    mov r11, [rdi + {OPAQUE}]
    test r11, r11
    jz set_dirty_original
    mov r11, [r11 + {SHARED}]
    cmp qword ptr [r11 + {COHERENT}], 0
    jne set_dirty_ours
set_dirty_original:
    movabs rax, {TLB_SET_DIRTY}
    jmp rax
set_dirty_ours:
    inc qword ptr [r11 + {SLOW_STORES}]
    and rsi, -4096
    lea rdx, [rdi + {TLB_FAST}]
    lea r8, [rdx + 16 * {MMU_MODES}]
    mov r10, rsi
    or r10, {NOTDIRTY}
set_dirty_mode:
    mov rax, rsi
    shr rax, 6
    and rax, [rdx]
    add rax, [rdx + 8]
    cmp [rax + 8], r10
    jne set_dirty_next
    mov rcx, [rax + 24]
    shr rcx, 12
    cmp rcx, [r11 + {FRAMES}]
    jae set_dirty_fast
    mov r9, [r11 + {CODE}]
    cmp byte ptr [r9 + rcx], 0
    jne set_dirty_keep
set_dirty_fast:
    mov [rax + 8], rsi
    jmp set_dirty_next
set_dirty_keep:
    inc qword ptr [r11 + {KEPT_SLOW}]
set_dirty_next:
    add rdx, 16
    cmp rdx, r8
    jb set_dirty_mode
    ret

# tlb_set_page_with_attrs(cpu, va, pa, attrs, prot, mmu_idx, size): afterwards drop the mark of a frame without code.
    .balign 16
set_page:
    push rbx
    push rbp
    push r12
    push r13
    push qword ptr [rsp + 40]
    mov rbx, rdi
    mov rbp, rsi
    mov r12d, r9d
    movabs rax, {TLB_SET_PAGE}
    call rax
    add rsp, 8
    mov r11, [rbx + {OPAQUE}]
    test r11, r11
    jz set_page_done
    mov r11, [r11 + {SHARED}]
    inc qword ptr [r11 + {FILLS}]
    cmp qword ptr [r11 + {EAGER}], 0
    je set_page_done
    and rbp, -4096
    shl r12, 4
    lea rdx, [rbx + r12 + {TLB_FAST}]
    mov rax, rbp
    shr rax, 6
    and rax, [rdx]
    add rax, [rdx + 8]
    mov r10, rbp
    or r10, {NOTDIRTY}
    cmp [rax + 8], r10
    jne set_page_done
    mov rcx, [rax + 24]
    shr rcx, 12
    cmp rcx, [r11 + {FRAMES}]
    jae set_page_fast
    mov r9, [r11 + {CODE}]
    cmp byte ptr [r9 + rcx], 0
    jne set_page_done
set_page_fast:
    mov [rax + 8], rbp
set_page_done:
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

# helper_lookup_tb_ptr(env): the code of the block that runs next, or of the way back to the main loop. The machine's block cache is
# asked in front of the original, for blocks in ring 3 with the usual flags and no code base. An entry is two words: pc << 16 | low half
# of the flags; and, from the top, 16 bits of epoch, 24 of frame number and 24 of the code's place in the buffer, in cache lines. It
# counts only while the live TLB shows its frame at its page, so no flush need reach the cache, which all cores share; and no block has
# been invalidated since, or the epoch would be another. Blocks that lie in two pages are left to the original.
    .balign 16
lookup:
    mov rax, [rdi - {ENV_OPAQUE}]
    test rax, rax
    jz lookup_original
    mov rax, [rax + {SHARED}]
    mov r11d, [rdi + {EFLAGS}]
    and r11d, {FLAGS_IN_BLOCKS}
    or r11d, [rdi + {HFLAGS}]
    mov edx, r11d
    and edx, {BLOCK_STATE_MASK}
    cmp edx, [rax + {BLOCK_STATE}]
    jne lookup_original
    cmp qword ptr [rdi + {CS_BASE}], 0
    jne lookup_original
    mov rsi, [rdi + {RIP}]
    mov rcx, [rax + {TCG}]
    mov r9d, [rcx + {TCG_FLUSHES}]
    add r9, [rcx + {TCG_INVALIDATIONS}]
    cmp r9, [rax + {BLOCK_CHANGES}]
    jne lookup_outdated
lookup_ready:
    mov r10, rsi
    shr r10, 12
    xor r10, rsi
    and r10d, {BLOCK_MASK}
    shl r10, 4
    add r10, [rax + {BLOCKS}]
    movzx r11d, r11w
    mov rdx, rsi
    shl rdx, 16
    or r11, rdx
    cmp [r10], r11
    jne lookup_miss
    mov rdx, rsi
    shr rdx, 6
    and rdx, [rdi - {ENV_TLB}]
    add rdx, [rdi - {ENV_TLB} + 8]
    and rsi, -4096
    cmp [rdx + {TLB_CODE}], rsi
    jne lookup_miss
    mov rdx, [rdx + {TLB_PADDR}]
    shl rdx, 12
    xor rdx, [rax + {BLOCK_EPOCH}]
    xor rdx, [r10 + 8]
    mov rcx, rdx
    shr rcx, 24
    jnz lookup_miss
    shl rdx, 6
    mov rax, [rax + {BLOCK_CODE}]
    add rax, rdx
    ret
lookup_original:
    movabs rax, {LOOKUP_TB_PTR}
    jmp rax
lookup_outdated:
    mov [rax + {BLOCK_CHANGES}], r9
    movabs rcx, {BLOCK_ONE_EPOCH}
    add [rax + {BLOCK_EPOCH}], rcx
    jnc lookup_ready
    add [rax + {BLOCK_EPOCH}], rcx
    mov r8, rdi
    mov r9, rax
    mov rdi, [rax + {BLOCKS}]
    mov ecx, {BLOCK_WORDS}
    xor eax, eax
    rep stosq
    mov rdi, r8
    mov rax, r9
    jmp lookup_ready
lookup_miss:
    push r10
    push r11
    push rdi
    movabs rax, {LOOKUP_TB_PTR}
    call rax
    pop rdi
    pop r11
    pop r10
    mov rcx, [rdi - {ENV_OPAQUE}]
    mov rcx, [rcx + {SHARED}]
    mov r8, rax
    sub r8, [rcx + {BLOCK_CODE}]
    cmp r8, {TB_HEADER}
    jb lookup_done
    test r8, 63
    jnz lookup_done
    shr r8, 6
    cmp r8, {BLOCK_PLACES}
    jae lookup_done
    lea r9, [rax - {TB_HEADER}]
    cmp [r9 + {TB_CODE}], rax
    jne lookup_done
    mov rsi, [r9]
    cmp rsi, [rdi + {RIP}]
    jne lookup_done
    mov edx, [r9 + {TB_FLAGS}]
    cmp dx, r11w
    jne lookup_done
    and edx, {BLOCK_STATE_MASK}
    cmp edx, [rcx + {BLOCK_STATE}]
    jne lookup_done
    cmp qword ptr [r9 + {TB_FRAMES} + 8], -1
    jne lookup_done
    mov rdx, rsi
    shr rdx, 6
    and rdx, [rdi - {ENV_TLB}]
    add rdx, [rdi - {ENV_TLB} + 8]
    and rsi, -4096
    cmp [rdx + {TLB_CODE}], rsi
    jne lookup_done
    mov rdx, [rdx + {TLB_PADDR}]
    cmp rdx, [r9 + {TB_FRAMES}]
    jne lookup_done
    shl rdx, 12
    xor rdx, [rcx + {BLOCK_EPOCH}]
    xor rdx, r8
    mov [r10], r11
    mov [r10 + 8], rdx
    inc qword ptr [rcx + {BLOCKS_KEPT}]
lookup_done:
    ret

# gettimeofday(tv, tz): virtual time while a machine is open (cell: open count, ns).
    .balign 16
time_of_day:
    movabs rax, {TIME_CELL}
    cmp qword ptr [rax], 0
    jne time_virtual
    movabs rax, {GETTIMEOFDAY}
    jmp rax
time_virtual:
    mov rax, [rax + 8]
    xor edx, edx
    mov ecx, 1000000000
    div rcx
    mov [rdi], rax
    mov rax, rdx
    xor edx, edx
    mov ecx, 1000
    div rcx
    mov [rdi + 8], rax
    xor eax, eax
    ret

# switch_bank(cpu, cr3, tag): exchange the parked and the user TLB, take the new root; nothing is flushed, because the
# tag is part of every block's key and the jump cache compares it. All banks count as dirty for later flushes.
    .balign 16
switch_bank:
    lea r8, [rdi + {TLB_DESC}]
    mov ecx, {TLB_DESC_WORDS}
switch_bank_word:
    mov rax, [r8]
    mov r9, [r8 + {TLB_DESC_SIZE}]
    mov [r8], r9
    mov [r8 + {TLB_DESC_SIZE}], rax
    add r8, 8
    dec ecx
    jnz switch_bank_word
    lea r8, [rdi + {TLB_FAST}]
    movups xmm0, [r8]
    movups xmm1, [r8 + 16]
    movups [r8], xmm1
    movups [r8 + 16], xmm0
    or word ptr [rdi + {TLB_DIRTY}], 7
    mov [rdi + {BANK_TAG}], rdx
    mov [rdi + {ENV} + {CR3}], rsi
    ret

# flush_frame(cpu, address of a frame): every entry that shows the frame goes, in all banks, whatever its page. Returns 1, and
# has done nothing, when the frame may hold translated code: a jump cache leads to blocks without a look at the TLB. The mark of
# an entry goes first, so that the search, which begins anew after each find, ends.
    .balign 16
flush_frame:
    mov rdx, [rdi + {OPAQUE}]
    mov rdx, [rdx + {SHARED}]
    mov eax, 1
    cmp qword ptr [rdx + {COHERENT}], 0
    je flush_frame_refused
    mov rcx, rsi
    shr rcx, 12
    cmp rcx, [rdx + {FRAMES}]
    jae flush_frame_refused
    mov r8, [rdx + {CODE}]
    cmp byte ptr [r8 + rcx], 0
    jne flush_frame_refused
    push rbx
    push rbp
    push r12
    push r13
    push r14
    mov rbx, rdi
    mov rbp, rsi
    lea r12, [rbx + {TLB_FAST}]
    lea r13, [rbx + {TLB_DESC} + {TLB_VICTIMS}]
    lea r14, [r12 + 16 * {MMU_MODES}]
flush_frame_mode:
    mov rdx, [r12 + 8]
    mov rcx, [r12]
    add rcx, rdx
flush_frame_entry:
    cmp [rdx + {TLB_PADDR}], rbp
    je flush_frame_found
    add rdx, {TLB_ENTRY_SIZE}
    cmp rdx, rcx
    jbe flush_frame_entry
    mov rdx, r13
    lea rcx, [rdx + {TLB_VICTIMS_SIZE}]
flush_frame_victim:
    cmp [rdx + {TLB_PADDR}], rbp
    je flush_frame_found
    add rdx, {TLB_ENTRY_SIZE}
    cmp rdx, rcx
    jb flush_frame_victim
    add r12, 16
    add r13, {TLB_DESC_SIZE}
    cmp r12, r14
    jb flush_frame_mode
    xor eax, eax
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
flush_frame_refused:
    ret
flush_frame_found:
    mov qword ptr [rdx + {TLB_PADDR}], -1
    mov rsi, [rdx]
    and rsi, [rdx + 8]
    and rsi, [rdx + 16]
    and rsi, -4096
    mov rdi, rbx
    movabs rax, {TLB_FLUSH_PAGE}
    call rax
    jmp flush_frame_mode

# see(env, -, va): the host address of what the live TLB of a ring-3 core shows at va, up to the end of the page; 0: it would have
# to be walked. For native handlers: changes rax, rcx and r8 only.
    .balign 16
see:
    mov r8, rdx
    shr r8, 6
    and r8, [rdi - {ENV_TLB}]
    add r8, [rdi - {ENV_TLB} + 8]
    mov rcx, rdx
    and rcx, -4096
    xor eax, eax
    cmp [r8], rcx
    jne see_end
    xor rcx, rdx
    mov rax, [rdi - {ENV_OPAQUE}]
    mov rax, [rax + {SHARED}]
    mov rax, [rax + {RAM}]
    add rax, [r8 + {TLB_PADDR}]
    add rax, rcx
see_end:
    ret

# cpu_restore_state(cpu, address in a block, will exit): RIP and the kind of flags as they were there, found by decoding what the
# translator noted. The helpers of SYSCALL and RDTSC ask for it before their hooks, although their blocks store both in front of the
# call: those callers, known by where they are called from, get nothing done.
    .balign 16
restore_state:
    mov rax, [rdi + {OPAQUE}]
    test rax, rax
    jz restore_state_original
    mov rcx, [rsp]
    movabs rax, {HELPER_SYSCALL}
    sub rcx, rax
    cmp rcx, {SYSCALL_SIZE}
    jb restore_state_known
    mov rcx, [rsp]
    movabs rax, {HELPER_RDTSC}
    sub rcx, rax
    cmp rcx, {RDTSC_SIZE}
    jb restore_state_known
restore_state_original:
    movabs rax, {RESTORE_STATE}
    jmp rax
restore_state_known:
    mov eax, 1
    ret
