/* inject ptrace PID: makes a stopped process map a fresh executable page with a system call of its own, writes code there
 *                    and lets it run that instead of going on. Not a byte of what was there is changed.
 * inject mem PID:    writes code over the instruction that the process will execute next, through /proc/PID/mem: which
 *                    asks no page for its permission to be written.
 *
 * Says the page that will run, and for `mem` the page as it was before. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "payload.h"
#include "say.h"

static void through_ptrace(pid_t pid)
{
    struct user_regs_struct before, regs;
    int status;
    if (ptrace(PTRACE_ATTACH, pid, 0, 0) || waitpid(pid, &status, 0) < 0)
        err(1, "cannot attach to %d", pid);
    if (ptrace(PTRACE_GETREGS, pid, 0, &before))
        err(1, "no registers");
    /* It was stopped in a system call: the instruction before the next is one. */
    if ((ptrace(PTRACE_PEEKTEXT, pid, before.rip - 2, 0) & 0xffff) != 0x050f)
        errx(1, "not stopped in a system call");
    regs = before;
    regs.rax = SYS_mmap;
    regs.rdi = 0;
    regs.rsi = PAGE;
    regs.rdx = PROT_READ | PROT_WRITE | PROT_EXEC;
    regs.r10 = MAP_PRIVATE | MAP_ANONYMOUS;
    regs.r8 = -1;
    regs.r9 = 0;
    regs.rip = before.rip - 2;
    regs.orig_rax = -1;
    if (ptrace(PTRACE_SETREGS, pid, 0, &regs) || ptrace(PTRACE_SINGLESTEP, pid, 0, 0) ||
        waitpid(pid, &status, 0) < 0 || ptrace(PTRACE_GETREGS, pid, 0, &regs))
        err(1, "the system call failed");
    uint64_t page = regs.rax;
    if (page % PAGE || page > 1ul << 47)
        errx(1, "no page: %lx", page);
    unsigned char copy[PAGE] = {0};
    memcpy(copy, payload, payload_len);
    for (unsigned long at = 0; at < payload_len; at += 8) {
        uint64_t word;
        memcpy(&word, copy + at, 8);
        if (ptrace(PTRACE_POKETEXT, pid, page + at, word))
            err(1, "cannot write");
    }
    regs.rip = page;
    regs.orig_rax = -1;
    if (ptrace(PTRACE_SETREGS, pid, 0, &regs))
        err(1, "cannot go there");
    say_page_as("runs", page, copy);
    ptrace(PTRACE_DETACH, pid, 0, 0);
}

static void through_mem(pid_t pid)
{
    char path[64], line[256];
    unsigned long at = 0;
    kill(pid, SIGSTOP);
    snprintf(path, sizeof path, "/proc/%d/syscall", pid);
    for (int tries = 0; tries < 100 && !at; tries++) {
        usleep(20000);
        FILE *file = fopen(path, "r");
        if (file && fgets(line, sizeof line, file) && strncmp(line, "running", 7))
            at = strtoul(strrchr(line, ' '), NULL, 16);
        if (file)
            fclose(file);
    }
    if (!at || at % PAGE + payload_len > PAGE)
        errx(1, "stopped in a bad place: %lx", at);
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int mem = open(path, O_RDWR);
    unsigned char copy[PAGE];
    if (mem < 0 || pread(mem, copy, PAGE, at & ~(PAGE - 1)) != (long)PAGE)
        err(1, "%s cannot be read", path);
    say_page_as("was", at & ~(PAGE - 1), copy);
    if (pwrite(mem, payload, payload_len, at) != (long)payload_len ||
        pread(mem, copy, PAGE, at & ~(PAGE - 1)) != (long)PAGE)
        err(1, "%s cannot be written", path);
    say_page_as("runs", at & ~(PAGE - 1), copy);
    kill(pid, SIGCONT);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        errx(2, "usage: inject ptrace|mem PID");
    if (strcmp(argv[1], "ptrace") == 0)
        through_ptrace(atoi(argv[2]));
    else
        through_mem(atoi(argv[2]));
    return 0;
}
