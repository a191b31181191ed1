/* Code that writes into the page that it runs from, just ahead of itself: each round changes the immediate operand of the
 * instruction after the writing one. Says the page as it is before the first round and after each. */
#include <err.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "say.h"

#define ROUNDS 5

/* mov [rip+1], dil; mov eax, 0; ret */
static const unsigned char code[] = {0x40, 0x88, 0x3d, 1, 0, 0, 0, 0xb8, 0, 0, 0, 0, 0xc3};

int main(void)
{
    unsigned char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        err(1, "no memory");
    memset(page, 0xcc, PAGE);
    memcpy(page + 64, code, sizeof code);
    int (*run)(int) = (int (*)(int))(page + 64);
    say_page("runs", page);
    for (int round = 1; round <= ROUNDS; round++) {
        if (run(round) != round)
            errx(1, "round %d ran what was there before", round);
        say_page("runs", page);
    }
    pause();
}
