// SPDX-License-Identifier: GPL-2.0
/*
 * Where KVM is listened to. Nothing of it is changed: ftrace calls us at the start of four of its functions, and refuses
 * us where somebody else redirects one of them (live patching). Hooks are there while a VM is watched, and not before.
 */
#include <linux/ftrace.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/tracepoint.h>

#include "nph.h"

struct nph_kvm_functions nph_kvm;

#define ACCESS_EXECUTE 1UL
#define ACCESS_WRITE 2UL

/* What we call ourselves is not redirected again. */
static bool is_ours(unsigned long parent)
{
	return within_module(parent, THIS_MODULE);
}

static void notrace at_page_fault(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct pt_regs *regs = ftrace_get_regs(fregs);
	struct kvm_vcpu *vcpu;
	struct nph_vm *vm;

	if (!regs || is_ours(parent))
		return;
	vcpu = (void *)regs->di;
	rcu_read_lock();
	vm = nph_vm_of(vcpu->kvm);
	if (vm && nph_is_trap(vm, vcpu, regs->si, regs->dx))
		regs->ip = (unsigned long)nph_page_fault;
	rcu_read_unlock();
}

/* KVM emulates a write for which this says that the frame has to stay write-protected. */
static bool refuse_spte(struct kvm_vcpu *vcpu, void *sp, const struct kvm_memory_slot *slot, unsigned int access, gfn_t gfn,
			kvm_pfn_t pfn, u64 old, bool prefetch, bool can_unsync, bool host_writable, u64 *spte)
{
	nph_kvm.make_spte(vcpu, sp, slot, access & ~ACCESS_WRITE, gfn, pfn, old, prefetch, can_unsync, host_writable, spte);
	return true;
}

static void notrace at_make_spte(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct pt_regs *regs = ftrace_get_regs(fregs);
	const struct kvm_memory_slot *slot;
	struct kvm_vcpu *vcpu;
	struct nph_vm *vm;

	if (!regs || is_ours(parent))
		return;
	vcpu = (void *)regs->di;
	slot = (void *)regs->dx;
	rcu_read_lock();
	vm = nph_vm_of(vcpu->kvm);
	if (vm && slot && vcpu->arch.mmu == &vcpu->arch.root_mmu) {
		if (nph_executable(vm, nph_frame(slot, regs->r8)))
			regs->cx &= ~ACCESS_WRITE;
		else
			regs->cx &= ~ACCESS_EXECUTE;
		if (nph_vcpu_of(vm, vcpu)->emulate)
			regs->ip = (unsigned long)refuse_spte;
	} else if (vm && slot && (regs->cx & ACCESS_WRITE) && !nph_nested_may_write(vm, nph_frame(slot, regs->r8))) {
		regs->cx &= ~ACCESS_WRITE;
	}
	rcu_read_unlock();
}

static int one_page(struct kvm *kvm)
{
	return PG_LEVEL_4K;
}

static void notrace at_max_level(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct pt_regs *regs = ftrace_get_regs(fregs);

	if (!regs)
		return;
	rcu_read_lock();
	if (nph_vm_of((void *)regs->di))
		regs->ip = (unsigned long)one_page;
	rcu_read_unlock();
}

/* KVM's own writes into the guest, and those of its emulator. */
static void notrace at_dirty(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct pt_regs *regs = ftrace_get_regs(fregs);
	const struct kvm_memory_slot *slot;
	struct nph_vm *vm;

	if (!regs || !regs->si)
		return;
	slot = (void *)regs->si;
	rcu_read_lock();
	vm = nph_vm_of((void *)regs->di);
	if (vm && nph_executable(vm, nph_frame(slot, regs->dx)))
		nph_host_write(vm, nph_frame(slot, regs->dx));
	rcu_read_unlock();
}

struct hook {
	const char *name;
	ftrace_func_t at;
	unsigned long flags;
	struct ftrace_ops ops;
};

#define REDIRECTS (FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_IPMODIFY)

static struct hook hooks[] = {
	{ "make_spte", at_make_spte, REDIRECTS },
	{ "kvm_mmu_page_fault", at_page_fault, REDIRECTS },
	{ "kvm_mmu_max_mapping_level", at_max_level, REDIRECTS },
	{ "mark_page_dirty_in_slot", at_dirty, FTRACE_OPS_FL_SAVE_REGS },
};

/* Which roots a vCPU has: seen at its exits, one exit late, because KVM learns of CR3 after it told of the exit. */
static void at_exit_of_guest(void *data, struct kvm_vcpu *vcpu, u32 isa)
{
	struct nph_vcpu *state;
	struct nph_vm *vm;
	u64 cr3 = vcpu->arch.cr3;

	rcu_read_lock();
	vm = nph_vm_of(vcpu->kvm);
	if (vm) {
		state = nph_vcpu_of(vm, vcpu);
		if (vcpu->arch.hflags & HF_GUEST_MASK)
			atomic64_inc(&vm->nested);
		else if (state->roots)
			/* Each time: who goes on running runs more. PAE roots lie in one page by the dozen. */
			WRITE_ONCE(state->roots[(cr3 >> PAGE_SHIFT ^ cr3 >> 5) % NPH_KVM_ROOTS],
				   cr3 | 1);
	}
	rcu_read_unlock();
}

extern struct tracepoint __tracepoint_kvm_exit;

static DEFINE_MUTEX(users_lock);
static int users;
static unsigned long (*lookup)(const char *name);

static int find(void **out, const char *name)
{
	*out = (void *)lookup(name);
	if (*out)
		return 0;
	pr_nph(KERN_ERR, "this kernel has no %s: this version of KVM is not supported", name);
	return -ENOENT;
}

static void unhook(int count)
{
	while (count--) {
		unregister_ftrace_function(&hooks[count].ops);
		ftrace_free_filter(&hooks[count].ops);
	}
	/*
	 * Whoever was redirected a moment ago is on its way to our code, and may sleep there in KVM, although nothing is watched any
	 * more: nph_page_fault() does. Sleepers are not waited for; so first until all that were redirected are in our code or
	 * out of it, then for the sleepers, then for those that leave it just now.
	 */
	synchronize_rcu_tasks();
	nph_wait_running();
	synchronize_rcu_tasks();
}

static int hook(struct hook *hook)
{
	void *at;
	int r = find(&at, hook->name);

	if (r)
		return r;
	/* As new: ftrace_free_filter() leaves behind the pointers to what it frees. */
	memset(&hook->ops, 0, sizeof(hook->ops));
	hook->ops.func = hook->at;
	hook->ops.flags = hook->flags;
	r = ftrace_set_filter_ip(&hook->ops, (unsigned long)at, 0, 0);
	if (!r)
		r = register_ftrace_function(&hook->ops);
	if (r) {
		ftrace_free_filter(&hook->ops);
		pr_nph(KERN_ERR, "%s cannot be hooked (%d)%s", hook->name, r,
		       r == -EBUSY ? ": somebody else redirects it, a live patch for instance" : "");
	}
	return r;
}

/* What guarding needs and watching does not: 0 where there is none. */
static void find_guard(enum nph_protect protect)
{
	void *at = (void *)lookup("mwriteprotect_range");

	nph_kvm.protect = protect == NPH_PROTECT_CTX ? at : NULL;
	nph_kvm.protect_mm = protect == NPH_PROTECT_MM ? at : NULL;
	nph_kvm.userfaultfd = (void *)lookup("userfaultfd_fops");
}

static int install(void)
{
	enum nph_protect protect;
	int r, i;

	r = nph_check_signatures(&protect);
	r = r ?: find((void **)&nph_kvm.page_fault, "kvm_mmu_page_fault");
	r = r ?: find((void **)&nph_kvm.make_spte, "make_spte");
	r = r ?: find((void **)&nph_kvm.zap, "kvm_zap_gfn_range");
	r = r ?: find((void **)&nph_kvm.cpl, "svm_get_cpl");
	r = r ?: find((void **)&nph_kvm.cs_bits, "svm_get_cs_db_l_bits");
	if (r)
		return r;
	find_guard(protect);
	/* Where it exists, everything passes the inner one, and the outer may be part of its callers. */
	if (lookup("__kvm_mmu_max_mapping_level"))
		hooks[2].name = "__kvm_mmu_max_mapping_level";
	for (i = 0; i < ARRAY_SIZE(hooks); i++) {
		r = hook(&hooks[i]);
		if (r) {
			unhook(i);
			return r;
		}
	}
	r = tracepoint_probe_register(&__tracepoint_kvm_exit, at_exit_of_guest, NULL);
	if (r)
		unhook(i);
	return r;
}

int nph_hooks_get(void)
{
	int r = 0;

	mutex_lock(&users_lock);
	if (!users)
		r = install();
	if (!r)
		users++;
	mutex_unlock(&users_lock);
	return r;
}

void nph_hooks_put(void)
{
	mutex_lock(&users_lock);
	if (!--users) {
		tracepoint_probe_unregister(&__tracepoint_kvm_exit, at_exit_of_guest, NULL);
		tracepoint_synchronize_unregister();
		unhook(ARRAY_SIZE(hooks));
	}
	mutex_unlock(&users_lock);
}

/* Whether KVM uses the processor's nested page tables, without which faults are told in other addresses. */
bool nph_nested_paging(void)
{
	bool *enabled = (void *)lookup("tdp_enabled");

	return enabled && *enabled;
}

/* The names of functions that KVM does not export are found through the one that finds names. */
int nph_hooks_init(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	int r = register_kprobe(&probe);

	if (r) {
		pr_nph(KERN_ERR, "kallsyms_lookup_name cannot be found (%d): are kprobes on?", r);
		return r;
	}
	lookup = (void *)probe.addr;
	/* With IBT, the probe lies behind the instruction that marks a function's start. */
	if (IS_ENABLED(CONFIG_X86_KERNEL_IBT) && (unsigned long)lookup % 16 == 4)
		lookup = (void *)probe.addr - 4;
	unregister_kprobe(&probe);
	return 0;
}
