/* Code that can lie anywhere and needs nothing: it sleeps for 20 ms, again and again, for ever. */
extern const unsigned char payload[], payload_end[];
#define payload_len ((unsigned long)(payload_end - payload))
__asm__(".section .rodata\n"
        ".globl payload, payload_end\n"
        "payload:\n"
        "  sub $0x98, %rsp\n"
        "1: movq $0, (%rsp)\n"
        "  movq $20000000, 8(%rsp)\n"
        "  mov $35, %eax\n" /* nanosleep */
        "  mov %rsp, %rdi\n"
        "  xor %esi, %esi\n"
        "  syscall\n"
        "  jmp 1b\n"
        "payload_end:\n"
        ".text\n");
