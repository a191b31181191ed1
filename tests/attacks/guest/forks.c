/* forks: every process of it starts another again and again, and ends when there are as many as there may be: as many come
 * as go. The first one stays. */
#include <signal.h>
#include <sys/types.h>
#include <unistd.h>

int main(void)
{
    pid_t first = getpid();
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        pid_t child = fork();
        if (child > 0)
            continue;
        if (child < 0 && getpid() == first)
            usleep(1000);
        else if (child < 0)
            _exit(0);
    }
}
