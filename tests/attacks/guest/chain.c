/* chain PID FILE: makes a process create a file by code that it has already: return addresses on its stack lead through the
 * ends of its C library's own functions. Not a byte of code is added or changed. Says each address that is used. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned char *code;
static unsigned long code_at, code_len;

static uint64_t gadget(const char *bytes, unsigned long len)
{
    unsigned char *found = memmem(code, code_len, bytes, len);
    if (!found)
        errx(1, "the library has no such end");
    uint64_t at = code_at + (found - code);
    printf("gadget %lx\n", at);
    return at;
}

int main(int argc, char **argv)
{
    char path[64], line[512];
    unsigned long start, end;
    int status;
    if (argc != 3)
        errx(2, "usage: chain PID FILE");
    pid_t pid = atoi(argv[1]);
    struct user_regs_struct regs;
    if (ptrace(PTRACE_ATTACH, pid, 0, 0) || waitpid(pid, &status, 0) < 0 || ptrace(PTRACE_GETREGS, pid, 0, &regs))
        err(1, "cannot attach to %d", pid);
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *maps = fopen(path, "r");
    while (fgets(line, sizeof line, maps))
        if (strstr(line, "libc.so.6") && strstr(line, "r-xp") && sscanf(line, "%lx-%lx", &start, &end) == 2) {
            code_at = start;
            code_len = end - start;
        }
    code = malloc(code_len);
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int mem = open(path, O_RDWR);
    if (!code_at || pread(mem, code, code_len, code_at) != (long)code_len)
        errx(1, "no C library");
    uint64_t rax = gadget("\x58\xc3", 2), rdi = gadget("\x5f\xc3", 2), rsi = gadget("\x5e\xc3", 2),
             call = gadget("\x0f\x05\xc3", 3);
    uint64_t stack = (regs.rsp - 4096) & ~15ul, name = stack + 512;
    uint64_t chain[] = {rdi, name, rsi, 0600, rax, SYS_creat, call, rax, SYS_pause, call};
    if (pwrite(mem, argv[2], strlen(argv[2]) + 1, name) < 0 ||
        pwrite(mem, chain, sizeof chain, stack) != sizeof chain)
        err(1, "cannot write to the stack");
    regs.rip = chain[0];
    regs.rsp = stack + 8;
    regs.orig_rax = -1;
    if (ptrace(PTRACE_SETREGS, pid, 0, &regs))
        err(1, "cannot go there");
    fflush(stdout);
    ptrace(PTRACE_DETACH, pid, 0, 0);
    return 0;
}
