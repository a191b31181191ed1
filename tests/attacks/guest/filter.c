/* Loads a small eBPF program, which the kernel compiles, and runs it with packets to itself. The program returns a number
 * that no other code has in it. */
#define _GNU_SOURCE
#include <err.h>
#include <linux/bpf.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int number = argc > 1 ? (int)strtol(argv[1], NULL, 16) : 0x13579bdf;
    struct bpf_insn program[] = {
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = number},
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_2, .imm = ~number},
        {.code = BPF_ALU64 | BPF_OR | BPF_X, .dst_reg = BPF_REG_0, .src_reg = BPF_REG_2},
        {.code = BPF_JMP | BPF_EXIT},
    };
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
    attributes.insns = (unsigned long)program;
    attributes.insn_cnt = sizeof program / sizeof program[0];
    attributes.license = (unsigned long)"GPL";
    int filter = syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof attributes);
    if (filter < 0)
        err(1, "the kernel refuses the program");
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int in = socket(AF_INET, SOCK_DGRAM, 0), out = socket(AF_INET, SOCK_DGRAM, 0);
    if (bind(in, (struct sockaddr *)&address, size) || getsockname(in, (struct sockaddr *)&address, &size) ||
        setsockopt(in, SOL_SOCKET, SO_ATTACH_BPF, &filter, sizeof filter))
        err(1, "no filter");
    for (;;) {
        sendto(out, "packet", 6, 0, (struct sockaddr *)&address, size);
        recv(in, (char[8]){0}, 8, MSG_DONTWAIT);
        usleep(50000);
    }
}
