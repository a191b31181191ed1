/* Two pages of one 2 MiB page, which a program asks for by itself and then runs: it has one leaf in the page tables for all of
 * it. Between them nothing runs. Says each page. */
#define _GNU_SOURCE
#include <err.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "say.h"

#define LARGE (512 * PAGE)

int main(void)
{
    unsigned char *large = mmap(NULL, LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    if (large == MAP_FAILED)
        err(1, "no 2 MiB page");
    memset(large, 0xcc, LARGE);
    unsigned long pages[] = {7, 300};
    for (int nth = 0; nth < 2; nth++) {
        unsigned char code[] = {0xb8, nth + 71, 0, 0, 0, 0xc3}; /* mov eax, number; ret */
        memcpy(large + pages[nth] * PAGE + 64, code, sizeof code);
    }
    if (mprotect(large, LARGE, PROT_READ | PROT_EXEC))
        err(1, "it cannot be made executable");
    for (int nth = 0; nth < 2; nth++) {
        unsigned char *page = large + pages[nth] * PAGE;
        int answer = ((int (*)(void))(page + 64))();
        if (answer != nth + 71)
            errx(1, "page %lu answered %d", pages[nth], answer);
        say_page("runs", page);
    }
    pause();
}
