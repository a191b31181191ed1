/* generations SECONDS: rewrites one function and runs it, as fast as it can. Says how often. */
#define _GNU_SOURCE
#include <err.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define PAGE 4096ul

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    double end = now() + (argc > 1 ? atof(argv[1]) : 5);
    unsigned char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        err(1, "no memory");
    memset(page, 0xcc, PAGE);
    page[0] = 0xb8; /* mov eax, number; ret */
    page[5] = 0xc3;
    uint32_t number = 0;
    while (number % 64 || now() < end) {
        memcpy(page + 1, &number, 4);
        if (((uint32_t(*)(void))page)() != number)
            errx(1, "generation %u ran what was there before", number);
        number++;
    }
    printf("ran %u\n", number);
    return 0;
}
