/* runpage FILE OFFSET: maps one page of a file to be executed, and calls what stands at this offset, which must return.
 * Nothing else of the file is used. Says the page. */
#include <err.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "say.h"

int main(int argc, char **argv)
{
    if (argc != 3)
        errx(2, "usage: runpage FILE OFFSET");
    unsigned long offset = strtoul(argv[2], NULL, 0);
    int file = open(argv[1], O_RDONLY);
    unsigned char *page = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, offset & ~(PAGE - 1));
    if (file < 0 || page == MAP_FAILED)
        err(1, "cannot map %s", argv[1]);
    ((void (*)(void))(page + offset % PAGE))();
    say_page("runs", page);
    pause();
}
