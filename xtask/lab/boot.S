# The first sector of a disk that boots Linux by the BIOS: loads what the table at its end names, and
# enters the kernel by the 16-bit boot protocol (Linux's Documentation/arch/x86/boot.rst). It is for a
# machine whose firmware is known to have INT 13H extensions, and whose disk fits the memory.
#
# Each entry of the table has the address where it goes, the first sector, and the number of chunks.
# One whose number is 0 ends the table.
.code16
.set CHUNK, 60                  # sectors, of 512 bytes; xtask/src/lab/boot_disk.rs knows this
.set BUFFER, 0x1000             # a segment
.set KERNEL, 0x9000             # the segment of the kernel's real-mode part

start:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    sti
    movb %dl, drive
    movw $table, %si
entry:
    cmpl $0, 8(%si)
    je enter
chunk:
    movl 4(%si), %eax
    movl %eax, sector
    pushw %si
    movw $packet, %si
    movb drive, %dl
    movb $0x42, %ah             # extended read
    int $0x13
    jc failed
    popw %si
    movl (%si), %eax
    movw %ax, to
    shrl $16, %eax
    movb %al, to + 2
    movb %ah, to + 5
    pushw %si
    movw $descriptors, %si
    movw $CHUNK * 256, %cx      # words
    movb $0x87, %ah             # move a block, also beyond 1 MiB
    int $0x15
    jc failed
    popw %si
    addl $CHUNK * 512, (%si)
    addl $CHUNK, 4(%si)
    decl 8(%si)
    jnz chunk
    addw $12, %si
    jmp entry
enter:
    cli
    movw $KERNEL, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %fs
    movw %ax, %gs
    movw %ax, %ss
    movw $0xe000, %sp
    ljmp $KERNEL + 0x20, $0
failed:
    hlt
    jmp failed

drive:
    .byte 0
    .balign 4
packet:                         # for the extended read
    .byte 16, 0
    .word CHUNK, 0, BUFFER
sector:
    .quad 0
descriptors:                    # for the move: two that the BIOS fills in, source, destination, two more
    .quad 0, 0
    .word 0xffff
    .byte 0, 0, BUFFER >> 12, 0x93, 0, 0
    .word 0xffff
to:
    .byte 0, 0, 0, 0x93, 0, 0
    .quad 0, 0

    .org 448
table:
    .org 510
    .word 0xaa55
