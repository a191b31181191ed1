/*
 * kexec KERNEL INITRD: makes another kernel the guest's, at once and without the machine noticing. The command line is that
 * of the present kernel.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/reboot.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    static char line[4096];
    int from = open("/proc/cmdline", O_RDONLY);
    ssize_t length = read(from, line, sizeof(line) - 1);
    int kernel, initrd;

    if (count != 3 || length <= 0)
        return 1;
    line[strcspn(line, "\n")] = 0;
    kernel = open(arguments[1], O_RDONLY);
    initrd = open(arguments[2], O_RDONLY);
    if (kernel < 0 || initrd < 0)
        return 2;
    if (syscall(SYS_kexec_file_load, kernel, initrd, strlen(line) + 1, line, 0))
        return 3;
    sync();
    syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, NULL);
    return 4;
}
