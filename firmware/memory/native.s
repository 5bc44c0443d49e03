# What kernels do most, natively: mmu_update with one request, a new entry of an L1 table where none was present.
# Asked at each hypercall: registers (rdi), words of the running vCPU (rsi). Everything that `Mmu.mmu_update` would have to look
# at twice, refuse or flush is left to it: then 0 comes back and nothing has changed.
    cmp qword ptr [rdi + {RAX}], {MMU_UPDATE}
    jne left
    cmp qword ptr [rdi + {RSI}], 1
    jne left
    cmp qword ptr [rdi + {RDX}], 0
    jne left
    cmp qword ptr [rdi + {R10}], {DOMID_SELF}
    jne left
    test dword ptr [rdi + {R11}], {TRAP_FLAG}
    jnz left
    mov rax, [rsi + {INFO}]
    add rax, [rsi + {RAM}]
    cmp byte ptr [rax], 0
    je quiet
    cmp byte ptr [rax + 1], 0
    je left
quiet:
    mov rdx, [rdi + {RDI}]
    movabs rax, {HYPERVISOR_END}
    cmp rdx, rax
    jb left
    mov eax, edx
    and eax, 4095
    cmp eax, {LAST_REQUEST}
    ja left
    movabs rax, {SEE}
    call rax
    test rax, rax
    jz left
    mov r8, [rax]
    mov r9, [rax + 8]

    # r8: where, in a validated L1 table of the domain that holds no code
    test r8b, {MODE_MASK}
    jnz left
    mov rcx, r8
    shr rcx, 12
    cmp rcx, [rsi + {FRAMES}]
    jae left
    mov rax, [rsi + {OWNERS}]
    movzx edx, word ptr [rax + rcx * 2]
    cmp rdx, [rsi + {TAG}]
    jne left
    mov r11, [rsi + {TYPES}]
    mov rdx, [r11 + rcx * 8]
    cmp rdx, {ONE}
    jb left
    and edx, {VALID_MASK}
    cmp edx, {L1_VALIDATED}
    jne left
    mov rdx, [rsi + {CODE}]
    cmp byte ptr [rdx + rcx], 0
    jne left
    add r8, [rsi + {RAM}]
    test byte ptr [r8], {PRESENT}
    jnz left

    # r9: what, as Xen stores it
    test r9b, {PRESENT}
    jz left
    test r9b, {L1_DISALLOWED}
    jnz left
    test r9b, {USER}
    jnz by_user
    movabs rdx, {KERNEL_USER}
    or r9, rdx
by_user:
    bt r9, {GUEST_KERNEL_BIT}
    jc adjusted
    or r9, {GLOBAL}
adjusted:

    # rcx: the frame it maps, the domain's too, which takes another reference
    mov rcx, r9
    shl rcx, 12
    shr rcx, 24
    cmp rcx, [rsi + {FRAMES}]
    jae left
    movzx edx, word ptr [rax + rcx * 2]
    cmp rdx, [rsi + {TAG}]
    jne left
    movabs rdx, {COUNT_ROOM}
    mov r10, [rsi + {COUNTS}]
    mov rax, [r10 + rcx * 8]
    sub rax, {ONE}
    cmp rax, rdx
    jae left
    test r9b, {RW}
    jz taken
    mov rax, [r11 + rcx * 8]
    sub rax, {ONE}
    cmp rax, rdx
    jae left
    and eax, {VALID_MASK}
    cmp eax, {WRITABLE_VALIDATED}
    jne left
    add qword ptr [r11 + rcx * 8], {ONE}
taken:
    add qword ptr [r10 + rcx * 8], {ONE}
    mov [r8], r9
    mov qword ptr [rdi + {RAX}], 0
    mov rax, [rsi + {DONE}]
    inc qword ptr [rax]
    mov eax, 1
    ret
left:
    xor eax, eax
    ret
