/* One frame mapped twice: a parent writes to it where it is writable, a child executes it where it is executable. Neither
 * process ever has a page that is both. Says each content that ran, at the child's address. */
#define _GNU_SOURCE
#include <err.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "say.h"

#define ROUNDS 5

int main(void)
{
    int frame = memfd_create("frame", 0), go[2], done[2];
    if (frame < 0 || ftruncate(frame, PAGE) || pipe(go) || pipe(done))
        err(1, "no frame");
    unsigned char *here = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, frame, 0);
    unsigned char *there = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, frame, 0);
    if (here == MAP_FAILED || there == MAP_FAILED)
        err(1, "no mapping");
    memset(here, 0xcc, PAGE);
    pid_t child = fork();
    if (child == 0) {
        char round;
        munmap(here, PAGE);
        while (read(go[0], &round, 1) == 1) {
            char answer = ((int (*)(void))(there + 128))();
            if (write(done[1], &answer, 1) != 1)
                return 1;
        }
        return 0;
    }
    printf("child %d\n", child);
    for (char round = 1; round <= ROUNDS; round++) {
        char answer = 0;
        unsigned char code[] = {0xb8, round, 0, 0, 0, 0xc3}; /* mov eax, round; ret */
        memcpy(here + 128, code, sizeof code);
        if (write(go[1], &round, 1) != 1 || read(done[0], &answer, 1) != 1 || answer != round)
            errx(1, "round %d answered %d", round, answer);
        say_page_as("runs", (uint64_t)there, here);
    }
    pause();
}
