/* forks SECONDS AT_LEAST: every process of it starts another again and again, and ends when there are as many as there may be: as
 * many come as go. The first one stays. All end when the time is over and so many were started; in any case after ten times that time. */
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    pid_t first = getpid();
    time_t seconds = argc > 1 ? atoi(argv[1]) : 5;
    long least = argc > 2 ? atol(argv[2]) : 0;
    time_t begin = time(NULL);
    atomic_long *started =
        mmap(NULL, sizeof *started, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (started == MAP_FAILED)
        return 1;
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        time_t gone = time(NULL) - begin;
        if (gone >= 10 * seconds || (gone >= seconds && atomic_load(started) >= least))
            return 0;
        pid_t child = fork();
        if (child > 0)
            atomic_fetch_add(started, 1);
        else if (child < 0 && getpid() == first)
            /* Not a sleep: the others are gone by now, and it is to go on at once. */
            sched_yield();
        else if (child < 0)
            return 0;
    }
}
