/* How a planted program says what it runs, so that a test knows it without the monitor: see src/said.rs. */
#include <stdint.h>
#include <stdio.h>

#define PAGE 4096ul

static inline void say_page_as(const char *word, uint64_t address, const void *copy)
{
    const unsigned char *byte = copy;
    printf("page %s %lx ", word, (unsigned long)address);
    for (unsigned long i = 0; i < PAGE; i++)
        printf("%02x", byte[i]);
    printf("\n");
    fflush(stdout);
}

static inline void say_page(const char *word, const void *page)
{
    say_page_as(word, (uint64_t)page, page);
}
