/* hollow PROGRAM: starts a program, stopped before its first instruction, fills all of its code with other code, and lets
 * it go. The process has the program's name, arguments and file; what runs is none of it.
 * Says the process and the page of the entry point. */
#define _GNU_SOURCE
#include <elf.h>
#include <err.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "payload.h"
#include "say.h"

int main(int argc, char **argv)
{
    int status;
    char path[64], line[512];
    if (argc < 2)
        errx(2, "usage: hollow PROGRAM ARGUMENT…");
    pid_t pid = fork();
    if (pid == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        execv(argv[1], argv + 1);
        err(1, "cannot run %s", argv[1]);
    }
    if (waitpid(pid, &status, 0) < 0 || !WIFSTOPPED(status))
        errx(1, "did not stop");
    snprintf(path, sizeof path, "/proc/%d/auxv", pid);
    Elf64_auxv_t entry;
    int auxv = open(path, O_RDONLY);
    while (read(auxv, &entry, sizeof entry) == sizeof entry && entry.a_type != AT_ENTRY)
        ;
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int mem = open(path, O_RDWR);
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *maps = fopen(path, "r");
    unsigned char page[PAGE];
    memset(page, 0x90, PAGE);
    memcpy(page + PAGE - payload_len, payload, payload_len);
    unsigned long start, end, filled = 0;
    char permissions[8];
    while (fgets(line, sizeof line, maps)) {
        if (sscanf(line, "%lx-%lx %7s", &start, &end, permissions) != 3 || permissions[2] != 'x' ||
            entry.a_un.a_val < start || entry.a_un.a_val >= end)
            continue;
        for (; start < end; start += PAGE, filled++)
            if (pwrite(mem, page, PAGE, start) != (long)PAGE)
                err(1, "cannot write");
    }
    if (!filled)
        errx(1, "no code at the entry point");
    printf("process %d\n", pid);
    say_page_as("runs", entry.a_un.a_val & ~(PAGE - 1), page);
    ptrace(PTRACE_DETACH, pid, 0, 0);
    return 0;
}
