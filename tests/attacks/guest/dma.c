/*
 * One page of memory, filled again and again by the disk alone: with O_DIRECT the device writes into the page itself, and
 * no instruction of the guest does. Each time, code in it is run.
 *
 *   dma FIRST SECOND KNOWN OFFSET
 *
 * FIRST and SECOND are written here, with different code; KNOWN is a file that has a `ret` OFFSET bytes in. Says the page
 * after each read.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "say.h"

/* A page of code that returns `answer`. */
static int make(const char *path, unsigned char answer)
{
    static unsigned char page[PAGE];
    int file = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    int done;

    memset(page, 0x90, PAGE);
    page[PAGE - 6] = 0xb8;
    memcpy(page + PAGE - 5, (unsigned char[]){ answer, 0, 0, 0, 0xc3 }, 5);
    done = file >= 0 && write(file, page, PAGE) == (ssize_t)PAGE && !fsync(file);
    close(file);
    return done;
}

static int read_directly(const char *path, void *page, off_t from)
{
    int file = open(path, O_RDONLY | O_DIRECT);
    int done = file >= 0 && pread(file, page, PAGE, from) == (ssize_t)PAGE;

    close(file);
    return done;
}

int main(int count, char **arguments)
{
    unsigned char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned long offset;

    if (count != 5 || page == MAP_FAILED || mlock(page, PAGE))
        return 1;
    offset = strtoul(arguments[4], NULL, 0);
    if (!make(arguments[1], 1) || !make(arguments[2], 2))
        return 2;
    for (int number = 1; number <= 2; number++) {
        if (!read_directly(arguments[number], page, 0) || ((int (*)(void))page)() != number)
            return 3;
        say_page(number == 1 ? "first" : "second", page);
    }
    if (!read_directly(arguments[3], page, (off_t)(offset & ~(PAGE - 1))))
        return 4;
    ((void (*)(void))(page + offset % PAGE))();
    say_page("known", page);
    if (!read_directly(arguments[1], page, 0) || ((int (*)(void))page)() != 1)
        return 5;
    say_page("again", page);
    pause();
    return 0;
}
