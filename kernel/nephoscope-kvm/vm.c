// SPDX-License-Identifier: GPL-2.0
/* Which VMs are watched, and what belongs to a watch. */
#include <linux/hashtable.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "nph.h"

static DEFINE_HASHTABLE(vms, 6);
static DEFINE_MUTEX(vms_lock);

/* More than any guest address has bits. */
#define ALL_FRAMES (1ULL << 40)
#define RING_BYTES_LEAST (32 << 10)
#define RING_BYTES_MOST (64 << 20)

/* Under RCU. */
struct nph_vm *nph_vm_of(struct kvm *kvm)
{
	struct nph_vm *vm;

	hash_for_each_possible_rcu(vms, vm, node, (unsigned long)kvm)
		if (vm->kvm == kvm)
			return vm;
	return NULL;
}

/*
 * The host is about to change what lies behind these addresses. Until it has, no frame there becomes executable: what
 * would be captured may not be what is mapped then.
 */
static int taking(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	struct nph_vm *vm = container_of(notifier, struct nph_vm, notifier);
	u64 first = range->start >> PAGE_SHIFT, end = ((range->end - 1) >> PAGE_SHIFT) + 1;

	if (nph_guard_is_own(vm, first, end))
		return 0;
	spin_lock(&vm->taken_lock);
	vm->taken_first = vm->taking ? min(vm->taken_first, first) : first;
	vm->taken_end = vm->taking ? max(vm->taken_end, end) : end;
	vm->taking++;
	spin_unlock(&vm->taken_lock);
	nph_forget(vm, first, end);
	return 0;
}

static void taken(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	struct nph_vm *vm = container_of(notifier, struct nph_vm, notifier);

	if (nph_guard_is_own(vm, range->start >> PAGE_SHIFT, ((range->end - 1) >> PAGE_SHIFT) + 1))
		return;
	spin_lock(&vm->taken_lock);
	vm->taking--;
	spin_unlock(&vm->taken_lock);
}

static void ended(struct mmu_notifier *notifier, struct mm_struct *mm)
{
	struct nph_vm *vm = container_of(notifier, struct nph_vm, notifier);

	WRITE_ONCE(vm->gone, true);
	atomic_set(&vm->wake, 1);
	wake_up_interruptible(&vm->wait);
}

static const struct mmu_notifier_ops notifier_ops = {
	.invalidate_range_start = taking,
	.invalidate_range_end = taken,
	.release = ended,
};

static int listen(struct nph_vm *vm)
{
	int r;

	if (!mmget_not_zero(vm->kvm->mm))
		return -ESRCH;
	vm->notifier.ops = &notifier_ops;
	r = mmu_notifier_register(&vm->notifier, vm->kvm->mm);
	mmput(vm->kvm->mm);
	return r;
}

static void release(struct nph_vm *vm)
{
	xa_destroy(&vm->frames);
	xa_destroy(&vm->sums);
	vfree(vm->memory);
	kvfree(vm->rings);
	kvfree(vm->vcpus);
	kfree(vm);
}

static struct nph_vm *make(const struct nph_kvm_attach *how)
{
	struct nph_vm *vm;
	size_t ring = NPH_KVM_RING_HEAD + (size_t)how->ring_bytes;
	u32 i;

	vm = kzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);
	if (!vm)
		return NULL;
	xa_init_flags(&vm->frames, XA_FLAGS_LOCK_IRQ);
	spin_lock_init(&vm->taken_lock);
	init_waitqueue_head(&vm->wait);
	INIT_WORK(&vm->zap, nph_zap_work);
	for (i = 0; i < ARRAY_SIZE(vm->moves); i++)
		mutex_init(&vm->moves[i]);
	vm->full_ms = min_t(u32, how->full_ms, 10000);
	vm->rings_len = how->rings;
	vm->ring_bytes = how->ring_bytes;
	vm->memory_bytes = how->rings * (ring + PAGE_SIZE);
	vm->memory = vmalloc_user(vm->memory_bytes);
	vm->rings = kvcalloc(how->rings, sizeof(*vm->rings), GFP_KERNEL_ACCOUNT);
	vm->vcpus = kvcalloc(KVM_MAX_VCPUS, sizeof(*vm->vcpus), GFP_KERNEL_ACCOUNT);
	if (!vm->memory || !vm->rings || !vm->vcpus) {
		release(vm);
		return NULL;
	}
	for (i = 0; i < how->rings; i++)
		vm->vcpus[i].roots = vm->memory + how->rings * ring + (size_t)i * PAGE_SIZE;
	vm->attached_ns = ktime_get_ns();
	/* Pages have numbers that no earlier watch of this VM gave: nobody captures a million in a second. */
	atomic64_set(&vm->next_page, vm->attached_ns / NSEC_PER_USEC);
	nph_ring_init(vm);
	nph_recheck_init(vm);
	return vm;
}

/* Begins to watch. The caller holds the VM's file. */
int nph_vm_watch(struct kvm *kvm, const struct nph_kvm_attach *how, struct nph_vm **out)
{
	struct nph_vm *vm;
	int r;

	if (how->reserved || !how->rings || how->rings > KVM_MAX_VCPUS || !is_power_of_2(how->ring_bytes) ||
	    how->ring_bytes < RING_BYTES_LEAST || how->ring_bytes > RING_BYTES_MOST)
		return -EINVAL;
	vm = make(how);
	if (!vm)
		return -ENOMEM;
	kvm_get_kvm(kvm);
	vm->kvm = kvm;
	r = nph_hooks_get();
	if (r)
		goto free;
	r = listen(vm);
	if (r)
		goto unhook;
	mutex_lock(&vms_lock);
	if (nph_vm_of(kvm))
		r = -EEXIST;
	else
		hash_add_rcu(vms, &vm->node, (unsigned long)kvm);
	mutex_unlock(&vms_lock);
	if (r)
		goto unlisten;
	/* What is mapped already has both rights. It comes back as we allow it. */
	nph_kvm.zap(kvm, 0, ALL_FRAMES);
	nph_recheck_begin(vm);
	*out = vm;
	return 0;

unlisten:
	mmu_notifier_unregister(&vm->notifier, kvm->mm);
unhook:
	nph_hooks_put();
free:
	kvm_put_kvm(kvm);
	release(vm);
	return r;
}

/* From here on executable frames are guarded; those that are executable already, when they were fetched anew. */
int nph_vm_guard(struct nph_vm *vm, int fd)
{
	int r = nph_guard_set(vm, fd);

	if (r)
		return r;
	nph_forget(vm, 0, ALL_FRAMES);
	nph_kvm.zap(vm->kvm, 0, ALL_FRAMES);
	/* What was executable unguarded is not executable any more. */
	atomic64_set(&vm->unguarded, 0);
	return 0;
}

void nph_vm_unwatch(struct nph_vm *vm)
{
	struct kvm *kvm = vm->kvm;

	mutex_lock(&vms_lock);
	hash_del_rcu(&vm->node);
	mutex_unlock(&vms_lock);
	/* A vCPU that waits for room waits no longer. */
	WRITE_ONCE(vm->gone, true);
	synchronize_rcu();
	nph_wait_running();
	mmu_notifier_unregister(&vm->notifier, kvm->mm);
	cancel_delayed_work_sync(&vm->recheck);
	cancel_work_sync(&vm->zap);
	nph_kvm.zap(kvm, 0, ALL_FRAMES);
	nph_hooks_put();
	kvm_put_kvm(kvm);
	nph_guard_put(vm);
	release(vm);
}
