// SPDX-License-Identifier: GPL-2.0
/*
 * Whether what runs still is what was captured. Most who write past the guest's page tables are seen (guard.c). One who got
 * hold of the frame's memory before it was executed is not, and the kernel does not always say that there is one: a pin is
 * counted, but a plain reference, as direct I/O takes it before Linux 6.5 and vhost-scsi does, looks like any other. So
 * frames that are executable are compared with what was captured from them: within a second after that, and then in turns.
 *
 * Compared are keyed digests, whose key the guest does not know.
 */
#include <linux/highmem.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/random.h>
#include <linux/sched/mm.h>

#include "nph.h"

#define EVERY (1 * HZ)
/* In a VM that runs nothing new, a turn takes this much longer, as a power of two: who has a frame's memory gives it back some time. */
#define SLOWEST 6
/* In one go, of those whose turn it is: some hundred microseconds of a CPU. */
#define MOST 512

u64 nph_digest(const struct nph_vm *vm, const void *bytes)
{
	/* As a value in an xarray: 63 bits. */
	return siphash(bytes, PAGE_SIZE, &vm->key) >> 1;
}

/* The frame is executable, and `exposed`: devices can write to it unseen. The caller holds the frame's mutex. */
void nph_recheck_later(struct nph_vm *vm, u64 frame, bool exposed)
{
	xa_lock_irq(&vm->frames);
	/* Whose memory is taken away meanwhile needs no look. */
	if (nph_executable(vm, frame)) {
		__xa_set_mark(&vm->frames, frame, NPH_FRESH);
		if (exposed && !xa_get_mark(&vm->frames, frame, NPH_EXPOSED)) {
			__xa_set_mark(&vm->frames, frame, NPH_EXPOSED);
			atomic64_inc(&vm->exposed);
		}
	}
	xa_unlock_irq(&vm->frames);
	if (READ_ONCE(vm->quiet)) {
		WRITE_ONCE(vm->quiet, 0);
		mod_delayed_work(system_wq, &vm->recheck, EVERY);
	}
}

/* Under the lock of vm->frames: the frame is not executable any more. */
void nph_recheck_not(struct nph_vm *vm, struct xa_state *xas)
{
	xas_clear_mark(xas, NPH_FRESH);
	if (xas_get_mark(xas, NPH_EXPOSED)) {
		xas_clear_mark(xas, NPH_EXPOSED);
		atomic64_dec(&vm->exposed);
	}
}

static void unexpose(struct nph_vm *vm, u64 frame)
{
	xa_lock_irq(&vm->frames);
	if (xa_get_mark(&vm->frames, frame, NPH_EXPOSED)) {
		__xa_clear_mark(&vm->frames, frame, NPH_EXPOSED);
		atomic64_dec(&vm->exposed);
	}
	xa_unlock_irq(&vm->frames);
}

/* In the VMM's memory. */
static void recheck(struct nph_vm *vm, u64 frame)
{
	struct mutex *move = &vm->moves[frame % ARRAY_SIZE(vm->moves)];
	bool lent, is_exposed, guarded = false;
	struct page *page;
	void *sum, *from;
	u64 now, began;

	mutex_lock(move);
	began = ktime_get_ns();
	sum = xa_load(&vm->sums, frame);
	if (!nph_executable(vm, frame) || !sum)
		goto out;
	/* Both before the bytes are read: who writes after that is seen. */
	is_exposed = xa_get_mark(&vm->frames, frame, NPH_EXPOSED);
	if (is_exposed)
		guarded = nph_guard(vm, frame);
	if (get_user_pages_fast(frame << PAGE_SHIFT, 1, 0, &page) != 1)
		goto out;
	lent = folio_maybe_dma_pinned(page_folio(page));
	from = kmap_local_page(page);
	now = nph_digest(vm, from);
	kunmap_local(from);
	put_page(page);
	atomic64_inc(&vm->rechecks);
	if (now != xa_to_value(sum))
		nph_changed(vm, frame);
	else if (guarded && !lent)
		unexpose(vm, frame);
out:
	atomic64_add(ktime_get_ns() - began, &vm->recheck_ns);
	mutex_unlock(move);
}

/* Those that were captured since the last time, and the next few of all. */
static void look(struct nph_vm *vm)
{
	unsigned long frame = 0;
	int left = MOST;
	void *entry;

	xa_for_each_marked(&vm->frames, frame, entry, NPH_FRESH) {
		xa_lock_irq(&vm->frames);
		__xa_clear_mark(&vm->frames, frame, NPH_FRESH);
		xa_unlock_irq(&vm->frames);
		vm->was_fresh = true;
		WRITE_ONCE(vm->quiet, 0);
		recheck(vm, frame);
		cond_resched();
	}
	xa_for_each_start(&vm->frames, frame, entry, vm->recheck_next) {
		cond_resched();
		if (!(xa_to_value(entry) & 1))
			continue;
		if (!left--) {
			vm->recheck_next = frame;
			return;
		}
		recheck(vm, frame);
	}
	/* All had their turn; nothing that was not found changed before this turn began. */
	vm->recheck_next = 0;
	vm->same_at_ns = vm->turn_ns;
	vm->turn_ns = ktime_get_ns();
	/* Counted from one turn that began after the last capture. */
	if (vm->was_fresh)
		vm->was_fresh = false;
	else
		WRITE_ONCE(vm->quiet, min_t(u32, vm->quiet + 1, SLOWEST));
}

void nph_recheck_work(struct work_struct *work)
{
	struct nph_vm *vm = container_of(to_delayed_work(work), struct nph_vm, recheck);
	struct mm_struct *mm = vm->kvm->mm;

	if (READ_ONCE(vm->gone) || !mmget_not_zero(mm))
		return;
	kthread_use_mm(mm);
	look(vm);
	kthread_unuse_mm(mm);
	mmput(mm);
	schedule_delayed_work(&vm->recheck, EVERY << READ_ONCE(vm->quiet));
}

void nph_recheck_init(struct nph_vm *vm)
{
	get_random_bytes(&vm->key, sizeof(vm->key));
	xa_init(&vm->sums);
	vm->same_at_ns = vm->turn_ns = vm->attached_ns;
	INIT_DELAYED_WORK(&vm->recheck, nph_recheck_work);
}

void nph_recheck_begin(struct nph_vm *vm)
{
	schedule_delayed_work(&vm->recheck, EVERY);
}
