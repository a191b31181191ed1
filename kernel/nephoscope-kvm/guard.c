// SPDX-License-Identifier: GPL-2.0
/*
 * Writes to guest memory by the host itself: device models of the VMM, vhost, copies by the kernel on their behalf. They
 * go through the VMM's own page tables. There, executable frames are write-protected by way of a userfaultfd that a thread
 * of the VMM made and answers: who writes waits until that thread lifts the protection. Before the kernel does so, it tells
 * MMU notifiers that the mapping changes, so that the frame is not executable any more when the write goes on (vm.c).
 *
 * What has no page table between it and memory is not seen: a device to which the host's kernel lent the frame before.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/sched.h>

#include "nph.h"

/* The caller holds the frame's mutex. Notifiers run in this thread: this change says nothing of the frame's contents. */
static int change(struct nph_vm *vm, u64 frame, bool on)
{
	struct task_struct **guarding = &vm->guarding[frame % ARRAY_SIZE(vm->guarding)];
	unsigned long at = frame << PAGE_SHIFT;
	int r;

	WRITE_ONCE(*guarding, current);
	if (nph_kvm.protect)
		r = nph_kvm.protect(vm->guard->private_data, at, PAGE_SIZE, on);
	else
		r = nph_kvm.protect_mm(vm->kvm->mm, at, PAGE_SIZE, on, NULL);
	WRITE_ONCE(*guarding, NULL);
	return r;
}

/* Whether it is one of our own changes that an MMU notifier tells. */
bool nph_guard_is_own(struct nph_vm *vm, u64 first, u64 end)
{
	return end - first == 1 && READ_ONCE(vm->guarding[first % ARRAY_SIZE(vm->guarding)]) == current;
}

/* From now on, whoever writes to the frame is told of. KVM's mappings of it are gone afterwards. False: it cannot be. */
bool nph_guard(struct nph_vm *vm, u64 frame)
{
	return smp_load_acquire(&vm->guard) && !change(vm, frame, true);
}

/* The guest writes: it need not wait for the VMM. */
void nph_guard_lift(struct nph_vm *vm, u64 frame)
{
	if (smp_load_acquire(&vm->guard))
		change(vm, frame, false);
}

int nph_guard_set(struct nph_vm *vm, int fd)
{
	struct file *file;
	int r = 0;

	if (!nph_kvm.userfaultfd || (!nph_kvm.protect && !nph_kvm.protect_mm))
		return -EOPNOTSUPP;
	file = fget(fd);
	if (!file)
		return -EBADF;
	if (file->f_op != nph_kvm.userfaultfd)
		r = -EINVAL;
	else if (cmpxchg(&vm->guard, NULL, file))
		r = -EBUSY;
	if (r)
		fput(file);
	return r;
}

void nph_guard_put(struct nph_vm *vm)
{
	if (vm->guard)
		fput(vm->guard);
}
