/* holder FILE call|read: uses the library's first function, waits for FILE, then executes the second one or only reads
   its code, and stays. */
#include <unistd.h>

int near(void);
int far(void);

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    near();
    while (access(argv[1], F_OK) != 0)
        usleep(50000);
    if (argv[2][0] == 'c')
        far();
    else
        (void)*(volatile unsigned char *)far;
    for (;;)
        pause();
}
