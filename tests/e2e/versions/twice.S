# A library of two functions a megabyte apart. Its two versions differ in one number in the second, and nowhere else: not
# even a build ID tells them apart.
        .text
        .globl  near
        .type   near, @function
near:
        mov     $1, %eax
        ret
        .size   near, .-near

        .balign 0x100000
        .globl  far
        .type   far, @function
far:
        mov     $VERSION, %eax
        ret
        .size   far, .-far
        .section .note.GNU-stack, "", @progbits
