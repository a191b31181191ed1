/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NPH_H
#define NPH_H

#include <linux/kvm_host.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/siphash.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "nephoscope_kvm.h"

#define pr_nph(level, format, ...) printk(level "nephoscope_kvm: " format "\n", ##__VA_ARGS__)

struct nph_vm;
struct userfaultfd_ctx;

/* One ring and its only writer at a time. Head and place are ours: what the monitor writes over them is not read back. */
struct nph_ring {
	struct mutex lock;
	void *memory;		/* NPH_KVM_RING_HEAD, then the frames */
	u64 head;
	u64 lost_from_ns;
	u64 lost;
};

/* What is remembered of a vCPU between two of its faults. Only its own thread touches it. */
struct nph_vcpu {
	u64 last_rip;
	u64 last_frame;
	bool last_fetch;
	bool emulate;		/* the mapping being made is refused, so that KVM emulates the instruction */
	u64 *roots;
};

struct nph_vm {
	struct hlist_node node;
	struct rcu_head rcu;
	struct kvm *kvm;
	struct mmu_notifier notifier;

	/*
	 * Host-virtual frame number -> generation << 1 | executable. What is not there was never executed. Host-virtual,
	 * because one frame may stand at several guest-physical addresses, and another one at the same later.
	 */
	struct xarray frames;
	struct mutex moves[64];	/* a frame changes sides under the one of its number */
	/* Who changes a frame's protection at this moment, under its mutex. */
	struct task_struct *guarding[64];
	struct file *guard;	/* a userfaultfd of the VMM; set once */
	/* What the host is taking away at this moment: as KVM counts it, the hull of all such ranges. */
	spinlock_t taken_lock;
	int taking;
	u64 taken_first, taken_end;

	struct work_struct zap;	/* of frames with NPH_ZAP */

	/* recheck.c: what was captured from each frame, as a digest under the key; whose turn is next. */
	struct xarray sums;
	siphash_key_t key;
	struct delayed_work recheck;
	unsigned long recheck_next;
	u64 turn_ns, same_at_ns;	/* this turn began; the one before */
	u32 quiet;		/* turns without a capture, up to a bound */
	bool was_fresh;		/* there was one in this turn */

	atomic64_t next_page;
	u64 attached_ns;
	u32 full_ms;
	bool gone;

	u32 rings_len;
	u32 ring_bytes;
	size_t memory_bytes;
	void *memory;
	struct nph_ring *rings;
	struct nph_vcpu *vcpus;
	wait_queue_head_t wait;	/* the monitor, for frames; vCPUs, for room */
	atomic_t wake;

	atomic64_t captures, writes, emulated, host_writes, resets, zaps, ring_waits, ring_lost, unreadable, nested;
	atomic64_t unguarded, pinned, exposed, rechecks, changed, recheck_ns;
};

#define NPH_ZAP XA_MARK_0
#define NPH_FRESH XA_MARK_1	/* executable, and not looked at since */
#define NPH_EXPOSED XA_MARK_2	/* executable, and devices can write to it unseen */

static inline u64 nph_frame(const struct kvm_memory_slot *slot, gfn_t gfn)
{
	return (slot->userspace_addr >> PAGE_SHIFT) + (gfn - slot->base_gfn);
}

static inline bool nph_executable(struct nph_vm *vm, u64 frame)
{
	void *entry = xa_load(&vm->frames, frame);

	return entry && xa_to_value(entry) & 1;
}

/* vm.c */
struct nph_vm *nph_vm_of(struct kvm *kvm);
int nph_vm_watch(struct kvm *kvm, const struct nph_kvm_attach *how, struct nph_vm **out);
int nph_vm_guard(struct nph_vm *vm, int fd);
void nph_vm_unwatch(struct nph_vm *vm);

/* trap.c */
int nph_page_fault(struct kvm_vcpu *vcpu, gpa_t gpa, u64 error, void *insn, int len);
bool nph_is_trap(struct nph_vm *vm, struct kvm_vcpu *vcpu, gpa_t gpa, u64 error);
void nph_zap_work(struct work_struct *work);
void nph_forget(struct nph_vm *vm, u64 first, u64 end);
void nph_host_write(struct nph_vm *vm, u64 frame);
void nph_changed(struct nph_vm *vm, u64 frame);
bool nph_nested_may_write(struct nph_vm *vm, u64 frame);
void nph_wait_running(void);
struct nph_vcpu *nph_vcpu_of(struct nph_vm *vm, struct kvm_vcpu *vcpu);

/* guard.c */
int nph_guard_set(struct nph_vm *vm, int fd);
void nph_guard_put(struct nph_vm *vm);
bool nph_guard(struct nph_vm *vm, u64 frame);
void nph_guard_lift(struct nph_vm *vm, u64 frame);
bool nph_guard_is_own(struct nph_vm *vm, u64 first, u64 end);

/* recheck.c */
u64 nph_digest(const struct nph_vm *vm, const void *bytes);
void nph_recheck_later(struct nph_vm *vm, u64 frame, bool exposed);
void nph_recheck_not(struct nph_vm *vm, struct xa_state *xas);
void nph_recheck_work(struct work_struct *work);
void nph_recheck_init(struct nph_vm *vm);
void nph_recheck_begin(struct nph_vm *vm);

/* ring.c */
struct nph_capture {
	u64 frame, cr3, va;
	u32 generation;
	u16 start;
	bool user, paging;
	bool guarded;		/* afterwards: and nobody has it already */
	u8 bits;
};
enum nph_sent { NPH_SENT, NPH_LOST, NPH_AGAIN };
enum nph_sent nph_send_capture(struct nph_vm *vm, struct kvm_vcpu *vcpu, struct nph_capture *capture);
void nph_send_changed(struct nph_vm *vm, u64 from_ns);
void nph_ring_init(struct nph_vm *vm);

/* hooks.c */
struct nph_kvm_functions {
	int (*page_fault)(struct kvm_vcpu *vcpu, gpa_t gpa, u64 error, void *insn, int len);
	bool (*make_spte)(struct kvm_vcpu *vcpu, void *sp, const struct kvm_memory_slot *slot, unsigned int access,
			  gfn_t gfn, kvm_pfn_t pfn, u64 old, bool prefetch, bool can_unsync, bool host_writable,
			  u64 *spte);
	void (*zap)(struct kvm *kvm, gfn_t start, gfn_t end);
	int (*cpl)(struct kvm_vcpu *vcpu);
	void (*cs_bits)(struct kvm_vcpu *vcpu, int *db, int *l);
	/* One of the two: since Linux 6.9 it takes the userfaultfd, before that the VMM's memory. */
	int (*protect)(struct userfaultfd_ctx *ctx, unsigned long at, unsigned long len, bool on);
	int (*protect_mm)(struct mm_struct *mm, unsigned long at, unsigned long len, bool on, atomic_t *changing);
	const struct file_operations *userfaultfd;
};
extern struct nph_kvm_functions nph_kvm;
int nph_hooks_get(void);
void nph_hooks_put(void);
int nph_hooks_init(void);
bool nph_nested_paging(void);

/* check.c */
enum nph_protect { NPH_PROTECT_NONE, NPH_PROTECT_MM, NPH_PROTECT_CTX };
int nph_check_signatures(enum nph_protect *protect);

/* audit.c */
void nph_audit(struct nph_vm *vm, struct nph_kvm_audit *out);

#endif
