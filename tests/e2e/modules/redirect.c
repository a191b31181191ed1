// SPDX-License-Identifier: GPL-2.0
/* Stands where a live patch of KVM would: redirects make_spte, to itself. */
#include <linux/ftrace.h>
#include <linux/module.h>

static void notrace at(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
}

static struct ftrace_ops ops = {
	.func = at,
	.flags = FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_IPMODIFY,
};
static char name[] = "make_spte";

static int __init redirect_init(void)
{
	int r = ftrace_set_filter(&ops, name, sizeof(name) - 1, 1);

	return r ?: register_ftrace_function(&ops);
}

static void __exit redirect_exit(void)
{
	unregister_ftrace_function(&ops);
	ftrace_free_filter(&ops);
}

module_init(redirect_init);
module_exit(redirect_exit);
MODULE_LICENSE("GPL");
