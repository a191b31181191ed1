/* translations PAGES: writes as many different pages of code and runs each of them once. */
#define _GNU_SOURCE
#include <err.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096ul

int main(int argc, char **argv)
{
    unsigned long pages = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000, sum = 0;
    unsigned char *code = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (code == MAP_FAILED)
        err(1, "no memory");
    for (unsigned long i = 0; i < pages; i++) {
        unsigned char *page = code + i * PAGE;
        uint32_t number = (uint32_t)i;
        page[0] = 0xb8; /* mov eax, number; ret */
        memcpy(page + 1, &number, 4);
        page[5] = 0xc3;
        sum += ((uint32_t(*)(void))page)();
    }
    if (sum != pages * (pages - 1) / 2)
        errx(1, "something else ran");
    printf("ran %lu\n", pages);
    return 0;
}
