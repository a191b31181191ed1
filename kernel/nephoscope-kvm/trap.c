// SPDX-License-Identifier: GPL-2.0
/*
 * The rule: a frame is executable or writable, never both. The first fetch from a frame that is not executable makes it
 * so, and its bytes are sent; the first write to one that is takes the right away again.
 *
 * nph_page_fault() runs in the place of kvm_mmu_page_fault(), in the vCPU's thread, and may sleep. The order there is
 * what makes it right: the frame's new side is written first, then its mappings are torn down under the MMU's lock. A
 * mapping that another vCPU makes meanwhile either sees the new side, or is torn down.
 */
#include <linux/kvm_host.h>
#include <linux/sched/signal.h>
#include <asm/processor-flags.h>

#include "nph.h"

#define ERROR_WRITE BIT_ULL(1)
#define ERROR_PRESENT BIT_ULL(0)
#define ERROR_FETCH BIT_ULL(4)
/* The fault came while the guest's own page tables were walked (AMD64 APM 2, 15.25.6). */
#define ERROR_WALK BIT_ULL(33)

DEFINE_STATIC_SRCU(nph_running);

static bool is_fetch(u64 error)
{
	return (error & ERROR_FETCH) && !(error & ERROR_WALK);
}

struct nph_vcpu *nph_vcpu_of(struct nph_vm *vm, struct kvm_vcpu *vcpu)
{
	return &vm->vcpus[vcpu->vcpu_idx];
}

static struct kvm_memory_slot *slot_of(struct kvm_vcpu *vcpu, gfn_t gfn)
{
	return __gfn_to_memslot(kvm_vcpu_memslots(vcpu), gfn);
}

/* Whether this fault is one of ours. Called where nothing may sleep. */
bool nph_is_trap(struct nph_vm *vm, struct kvm_vcpu *vcpu, gpa_t gpa, u64 error)
{
	struct kvm_memory_slot *slot;

	/* Of a guest inside the guest. */
	if (vcpu->arch.mmu != &vcpu->arch.root_mmu)
		return false;
	if (!is_fetch(error) && !(error & ERROR_WRITE))
		return false;
	slot = slot_of(vcpu, gpa >> PAGE_SHIFT);
	if (!slot)
		return false;
	return nph_executable(vm, nph_frame(slot, gpa >> PAGE_SHIFT)) != is_fetch(error);
}

/* Tears down what maps the frame, wherever it stands: every slot of every address space may show it. */
static void zap(struct nph_vm *vm, u64 frame)
{
	struct kvm *kvm = vm->kvm;
	gfn_t found[8];
	int count = 0, as, bkt, idx;

	idx = srcu_read_lock(&kvm->srcu);
	for (as = 0; as < ARRAY_SIZE(kvm->memslots); as++) {
		struct kvm_memslots *slots = __kvm_memslots(kvm, as);
		struct kvm_memory_slot *slot;

		kvm_for_each_memslot(slot, bkt, slots) {
			u64 first = slot->userspace_addr >> PAGE_SHIFT;
			gfn_t gfn = slot->base_gfn + (frame - first);
			int i;

			if (frame < first || frame - first >= slot->npages)
				continue;
			for (i = 0; i < count && found[i] != gfn; i++)
				;
			if (i == count && count < ARRAY_SIZE(found))
				found[count++] = gfn;
			else if (i == count)
				nph_kvm.zap(kvm, gfn, gfn + 1);
		}
	}
	while (count--)
		nph_kvm.zap(kvm, found[count], found[count] + 1);
	srcu_read_unlock(&kvm->srcu, idx);
	atomic64_inc(&vm->zaps);
}

static bool taken_away(struct nph_vm *vm, u64 frame)
{
	bool taken;

	spin_lock(&vm->taken_lock);
	taken = vm->taking && vm->taken_first <= frame && frame < vm->taken_end;
	spin_unlock(&vm->taken_lock);
	return taken;
}

/* The page that the guest fetches from, as it sees it: the instruction's, or the next if it reaches into that. */
static u64 fetched_from(struct kvm_vcpu *vcpu, u64 rip, gpa_t gpa)
{
	/* Where the fetch stopped in its page says nothing of the instruction's start, except that it cannot lie behind. */
	if ((rip & ~PAGE_MASK) > PAGE_SIZE - 15 && (gpa & ~PAGE_MASK) < 15)
		return (rip & PAGE_MASK) + PAGE_SIZE;
	return rip & PAGE_MASK;
}

/* `*guarded`: whether devices cannot write to it unseen, as far as the caller knows; and then, as far as is known. */
static enum nph_sent capture(struct nph_vm *vm, struct kvm_vcpu *vcpu, gpa_t gpa, u64 frame, u32 generation, bool *guarded)
{
	u64 rip = kvm_get_linear_rip(vcpu), va = fetched_from(vcpu, rip, gpa);
	struct nph_capture capture = {
		.frame = frame,
		.cr3 = vcpu->arch.cr3,
		.va = va,
		.generation = generation,
		.start = va == (rip & PAGE_MASK) ? rip & ~PAGE_MASK : 0,
		.user = (vcpu->arch.cr0 & X86_CR0_PE) && nph_kvm.cpl(vcpu) == 3,
		.paging = vcpu->arch.cr0 & X86_CR0_PG,
		.guarded = *guarded,
	};
	enum nph_sent sent;
	int db, l;

	nph_kvm.cs_bits(vcpu, &db, &l);
	capture.bits = l ? 64 : db ? 32 : 16;
	sent = nph_send_capture(vm, vcpu, &capture);
	*guarded = capture.guarded;
	return sent;
}

/* The first fetch. Returns whether the fault is to be handled now; otherwise it comes again. */
static bool fetched(struct nph_vm *vm, struct kvm_vcpu *vcpu, gpa_t gpa, u64 error, const struct kvm_memory_slot *slot, u64 frame)
{
	struct mutex *move = &vm->moves[frame % ARRAY_SIZE(vm->moves)];
	bool handle = true, guarded;
	u64 generation = 0;
	void *before;

	mutex_lock(move);
	before = xa_load(&vm->frames, frame);
	if (before && xa_to_value(before) & 1)
		goto out;	/* another vCPU was faster */
	if (taken_away(vm, frame)) {
		handle = false;
		goto out;
	}
	if (before)
		generation = (xa_to_value(before) >> 1) + 1;
	if (xa_is_err(xa_store_irq(&vm->frames, frame, xa_mk_value(generation << 1 | 1), GFP_KERNEL_ACCOUNT))) {
		handle = false;
		goto out;
	}
	/* Devices do not write to ROM. */
	guarded = (slot->flags & KVM_MEM_READONLY) || nph_guard(vm, frame);
	/* With one vCPU nobody else makes mappings, and this one had none; but a guest inside the guest may have some. */
	if ((error & ERROR_PRESENT) || atomic_read(&vm->kvm->online_vcpus) > 1 || atomic64_read(&vm->nested))
		zap(vm, frame);
	/* Not what was captured from it in an earlier generation. */
	xa_erase(&vm->sums, frame);
	if (capture(vm, vcpu, gpa, frame, generation, &guarded) == NPH_AGAIN) {
		/* Not sent: as if it had not happened. Another vCPU may have mapped the frame meanwhile. */
		xa_store_irq(&vm->frames, frame, before, GFP_KERNEL_ACCOUNT);
		zap(vm, frame);
		handle = false;
	} else {
		nph_recheck_later(vm, frame, !guarded);
	}
out:
	mutex_unlock(move);
	return handle;
}

/* The frame loses the right to be executed. The generation is kept. False: it had none. */
static bool forget(struct nph_vm *vm, u64 frame, bool mark)
{
	XA_STATE(xas, &vm->frames, frame);
	unsigned long flags;
	bool was = false;
	void *entry;

	xas_lock_irqsave(&xas, flags);
	entry = xas_load(&xas);
	if (entry && xa_to_value(entry) & 1) {
		xas_store(&xas, xa_mk_value(xa_to_value(entry) & ~1UL));
		if (mark)
			xas_set_mark(&xas, NPH_ZAP);
		nph_recheck_not(vm, &xas);
		was = true;
	}
	xas_unlock_irqrestore(&xas, flags);
	return was;
}

/* `surely`: the right may be gone already, and the mappings with it not yet. */
static void written(struct nph_vm *vm, u64 frame, bool surely)
{
	struct mutex *move = &vm->moves[frame % ARRAY_SIZE(vm->moves)];

	mutex_lock(move);
	if (forget(vm, frame, false))
		atomic64_inc(&vm->writes);
	else if (!surely)
		goto out;
	zap(vm, frame);
	nph_guard_lift(vm, frame);
out:
	mutex_unlock(move);
}

static int original(struct kvm_vcpu *vcpu, gpa_t gpa, u64 error, void *insn, int len)
{
	int r = nph_kvm.page_fault(vcpu, gpa, error, insn, len);

	/* Not a jump: while we are on the stack, what called it is known to be us. */
	barrier();
	return r;
}

static int trap(struct nph_vm *vm, struct kvm_vcpu *vcpu, gpa_t gpa, u64 error, void *insn, int len)
{
	struct nph_vcpu *state = nph_vcpu_of(vm, vcpu);
	struct kvm_memory_slot *slot = slot_of(vcpu, gpa >> PAGE_SHIFT);
	u64 rip = kvm_get_linear_rip(vcpu), frame;
	int r;

	if (!slot)
		return original(vcpu, gpa, error, insn, len);
	frame = nph_frame(slot, gpa >> PAGE_SHIFT);
	if (is_fetch(error)) {
		if (!fetched(vm, vcpu, gpa, error, slot, frame))
			return 1;	/* into the guest again */
		state->last_fetch = true;
		state->last_frame = frame;
		state->last_rip = rip;
		return original(vcpu, gpa, error, insn, len);
	}
	if (!(state->last_fetch && state->last_frame == frame && state->last_rip == rip)) {
		state->last_fetch = false;
		written(vm, frame, false);
		return original(vcpu, gpa, error, insn, len);
	}
	/*
	 * The same instruction was just fetched from this frame and now writes to it: it would fault for ever. KVM
	 * emulates it, if no mapping can be made; then the frame's bytes are others, and have to be fetched anew. The right
	 * is gone before KVM looks for the frame's memory: who asks for guarded memory to write to it waits until the VMM
	 * lifts the protection, and by then KVM begins anew instead of emulating.
	 */
	atomic64_inc(&vm->emulated);
	written(vm, frame, true);
	state->emulate = true;
	r = original(vcpu, gpa, error, insn, len);
	state->emulate = false;
	state->last_fetch = false;
	/* Another vCPU may have fetched from it meanwhile. */
	written(vm, frame, true);
	return r;
}

int nph_page_fault(struct kvm_vcpu *vcpu, gpa_t gpa, u64 error, void *insn, int len)
{
	struct nph_vm *vm;
	int idx, r;

	idx = srcu_read_lock(&nph_running);
	rcu_read_lock();
	vm = nph_vm_of(vcpu->kvm);
	rcu_read_unlock();
	/* nph_vm_unwatch() waits for nph_running after it took the VM off the list. */
	if (vm)
		r = trap(vm, vcpu, gpa, error, insn, len);
	else
		r = original(vcpu, gpa, error, insn, len);
	srcu_read_unlock(&nph_running, idx);
	return r;
}

/*
 * Frames whose right was taken away where nothing could sleep. The mark stays until no mapping is left that was made while
 * the frame was executable: until then nobody else may write to it (nph_nested_may_write()).
 */
void nph_zap_work(struct work_struct *work)
{
	struct nph_vm *vm = container_of(work, struct nph_vm, zap);
	unsigned long frame;
	void *entry;
	bool again;

	do {
		again = false;
		frame = 0;
		xa_for_each_marked(&vm->frames, frame, entry, NPH_ZAP) {
			zap(vm, frame);
			xa_lock_irq(&vm->frames);
			/* It may have been fetched from and written to once more meanwhile. */
			if (xa_load(&vm->frames, frame) == entry)
				__xa_clear_mark(&vm->frames, frame, NPH_ZAP);
			else
				again = true;
			xa_unlock_irq(&vm->frames);
			cond_resched();
		}
	} while (again);
}

/* The host takes these frames' memory away or moves it: what is there afterwards is not what was captured. */
void nph_forget(struct nph_vm *vm, u64 first, u64 end)
{
	unsigned long frame = first;
	void *entry;

	xa_for_each_range(&vm->frames, frame, entry, first, end - 1) {
		if (forget(vm, frame, false))
			atomic64_inc(&vm->resets);
	}
}

/* Its bytes are not those that were captured. The caller holds the frame's mutex. */
void nph_changed(struct nph_vm *vm, u64 frame)
{
	if (!forget(vm, frame, false))
		return;
	atomic64_inc(&vm->changed);
	zap(vm, frame);
	nph_guard_lift(vm, frame);
	nph_send_changed(vm, vm->same_at_ns);
}

void nph_host_write(struct nph_vm *vm, u64 frame)
{
	if (forget(vm, frame, true)) {
		atomic64_inc(&vm->host_writes);
		schedule_work(&vm->zap);
	}
}

/*
 * Whether a guest inside the guest may be given a mapping of the frame to write through. Its faults are not ours: in which frame
 * it writes, the guest's own nested page tables say. So its first mapping of a frame with both rights counts as a write, and it gets
 * one without until no mapping to execute from is left; the fault comes again. Called under the MMU's lock.
 */
bool nph_nested_may_write(struct nph_vm *vm, u64 frame)
{
	if (nph_executable(vm, frame)) {
		nph_host_write(vm, frame);
		return false;
	}
	return !xa_get_mark(&vm->frames, frame, NPH_ZAP);
}

void nph_wait_running(void)
{
	synchronize_srcu(&nph_running);
}
