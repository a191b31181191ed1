/* forks SECONDS: every process of it starts another again and again, and ends when there are as many as there may be: as
 * many come as go. The first one stays. All end when the time is over. */
#include <signal.h>
#include <stdlib.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    pid_t first = getpid();
    time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 5);
    signal(SIGCHLD, SIG_IGN);
    while (time(NULL) < end) {
        pid_t child = fork();
        if (child < 0 && getpid() == first)
            usleep(1000);
        else if (child < 0)
            break;
    }
    return 0;
}
