// SPDX-License-Identifier: GPL-2.0
/* Frames on their way to the monitor. Layouts: crates/wire/src/ring.rs and frame.rs. */
#include <linux/delay.h>
#include <linux/highmem.h>
#include <linux/ktime.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>

#include "nph.h"

#define RING_MARK 0x31676e697268706eULL	/* "nphring1" */
#define RING_SIZE_AT 8
#define RING_HEAD_AT 64
#define RING_TAIL_AT 128
#define RING_ASLEEP_AT 192
#define RING_SKIP 0xffffffffU

struct frame_header {
	__le32 len;
	__le16 kind;
	__le16 vcpu;
	__le64 at_ns;
	__le64 page;
} __packed;

#define KIND_CAPTURED 1
#define KIND_GAP 5

struct frame_captured {
	struct frame_header header;
	__le64 frame;
	__le64 cr3;
	__le64 va;
	__le32 generation;
	__le16 start;
	__le16 end;
	u8 flags;
	u8 bits;
	u8 zero[6];
	u8 bytes[PAGE_SIZE];
} __packed;

#define CAPTURED_USER 1
#define CAPTURED_PAGING 2
/* Which other bytes of the page run will not be told. */
#define CAPTURED_WHOLE 8

struct frame_gap {
	struct frame_header header;
	__le64 from_ns;
	__le64 to_ns;
	__le64 lost;
	u8 code;
	u8 attribution;
	u8 reason;
	u8 zero[5];
} __packed;

#define GAP_SAMPLED 1
#define GAP_BLIND 2
#define REASON_RING_FULL 1
#define REASON_UNREADABLE 4
#define REASON_DEVICE_WRITES 9

static u64 *word(struct nph_ring *ring, size_t at)
{
	return ring->memory + at;
}

void nph_ring_init(struct nph_vm *vm)
{
	u32 i;

	for (i = 0; i < vm->rings_len; i++) {
		struct nph_ring *ring = &vm->rings[i];

		mutex_init(&ring->lock);
		ring->memory = vm->memory + (size_t)i * (NPH_KVM_RING_HEAD + vm->ring_bytes);
		*word(ring, RING_SIZE_AT) = vm->ring_bytes;
		*word(ring, 0) = RING_MARK;
	}
}

/* Where a frame of this length goes, or NULL if there is no room. `*head` is what the head will be. */
static void *place(struct nph_vm *vm, struct nph_ring *ring, u32 len, u64 *head)
{
	u64 size = vm->ring_bytes, at = ring->head & (size - 1);
	u64 tail = smp_load_acquire(word(ring, RING_TAIL_AT));
	u64 skipped = size - at < len ? size - at : 0;

	/* A tail ahead of the head can only come from a broken monitor: as a full ring. */
	if (tail > ring->head || ring->head - tail + skipped + len > size)
		return NULL;
	if (skipped) {
		*(__le32 *)(ring->memory + NPH_KVM_RING_HEAD + at) = cpu_to_le32(RING_SKIP);
		at = 0;
	}
	*head = ring->head + skipped + len;
	return ring->memory + NPH_KVM_RING_HEAD + at;
}

static void publish(struct nph_vm *vm, struct nph_ring *ring, u64 head)
{
	ring->head = head;
	smp_store_release(word(ring, RING_HEAD_AT), head);
	/* Pairs with the fence in `Consumer::sleep`: either we see that it sleeps, or it sees the new head. */
	smp_mb();
	if (READ_ONCE(*word(ring, RING_ASLEEP_AT)) && xchg(word(ring, RING_ASLEEP_AT), 0)) {
		atomic_set(&vm->wake, 1);
		wake_up_interruptible(&vm->wait);
	}
}

static void head_of(struct frame_header *header, u16 vcpu, u32 len, u16 kind, u64 now, u64 page)
{
	header->len = cpu_to_le32(len);
	header->kind = cpu_to_le16(kind);
	header->vcpu = cpu_to_le16(vcpu);
	header->at_ns = cpu_to_le64(now);
	header->page = cpu_to_le64(page);
}

static bool send_gap(struct nph_vm *vm, struct nph_ring *ring, u16 vcpu, u64 from, u64 now, u64 lost, u8 reason)
{
	u8 left = reason == REASON_DEVICE_WRITES ? GAP_SAMPLED : GAP_BLIND;
	u64 head;
	struct frame_gap *gap = place(vm, ring, sizeof(*gap), &head);

	if (!gap)
		return false;
	memset(gap, 0, sizeof(*gap));
	head_of(&gap->header, vcpu, sizeof(*gap), KIND_GAP, now, 0);
	gap->from_ns = cpu_to_le64(from);
	gap->to_ns = cpu_to_le64(now);
	gap->lost = cpu_to_le64(lost);
	gap->code = left;
	gap->attribution = left;
	gap->reason = reason;
	publish(vm, ring, head);
	return true;
}

/* A place for a frame, waiting for it if need be. The ring is locked. */
static enum nph_sent room(struct nph_vm *vm, struct nph_ring *ring, struct kvm_vcpu *vcpu, u32 len, void **out, u64 *head)
{
	u64 now = ktime_get_ns(), until = now + (u64)vm->full_ms * NSEC_PER_MSEC;

	if (ring->lost && send_gap(vm, ring, vcpu->vcpu_idx, ring->lost_from_ns, now, ring->lost, REASON_RING_FULL))
		ring->lost = 0;
	*out = ring->lost ? NULL : place(vm, ring, len, head);
	if (*out)
		return NPH_SENT;
	/* While frames are being lost nothing waits: the guest was held up for the whole bound once already. */
	if (!ring->lost) {
		atomic64_inc(&vm->ring_waits);
		while (ktime_get_ns() < until && !READ_ONCE(vm->gone)) {
			atomic_set(&vm->wake, 1);
			wake_up_interruptible(&vm->wait);
			/* The VMM wants its vCPU: the fault comes again when it is back. */
			if (signal_pending(current))
				return NPH_AGAIN;
			usleep_range(50, 100);
			*out = place(vm, ring, len, head);
			if (*out)
				return NPH_SENT;
		}
		ring->lost_from_ns = now;
	}
	ring->lost++;
	atomic64_inc(&vm->ring_lost);
	return NPH_LOST;
}

/* What is in the frame; and whether a device may write to it past all page tables. Of the copy a digest is kept. */
static bool copy(struct nph_vm *vm, u8 *to, struct nph_capture *capture)
{
	struct page *page;
	void *from;

	if (get_user_pages_fast(capture->frame << PAGE_SHIFT, 1, 0, &page) != 1)
		return false;
	from = kmap_local_page(page);
	memcpy(to, from, PAGE_SIZE);
	kunmap_local(from);
	if (folio_maybe_dma_pinned(page_folio(page))) {
		atomic64_inc(&vm->pinned);
		capture->guarded = false;
	}
	put_page(page);
	/* Without one it is not looked at again. */
	if (xa_is_err(xa_store(&vm->sums, capture->frame, xa_mk_value(nph_digest(vm, to)), GFP_KERNEL_ACCOUNT)))
		capture->guarded = false;
	if (!capture->guarded)
		atomic64_inc(&vm->unguarded);
	return true;
}

/* Sends the frame's bytes as they are now. The caller sees to it that the guest cannot write them. */
enum nph_sent nph_send_capture(struct nph_vm *vm, struct kvm_vcpu *vcpu, struct nph_capture *capture)
{
	struct nph_ring *ring = &vm->rings[min_t(u32, vcpu->vcpu_idx, vm->rings_len - 1)];
	struct frame_captured *frame;
	enum nph_sent sent;
	u64 head, now;
	void *at;

	mutex_lock(&ring->lock);
	sent = room(vm, ring, vcpu, sizeof(*frame), &at, &head);
	if (sent != NPH_SENT)
		goto out;
	frame = at;
	now = ktime_get_ns();
	if (!copy(vm, frame->bytes, capture)) {
		atomic64_inc(&vm->unreadable);
		send_gap(vm, ring, vcpu->vcpu_idx, now, now, 1, REASON_UNREADABLE);
		goto out;
	}
	head_of(&frame->header, vcpu->vcpu_idx, sizeof(*frame), KIND_CAPTURED, now, atomic64_inc_return(&vm->next_page));
	frame->frame = cpu_to_le64(capture->frame << PAGE_SHIFT);
	frame->cr3 = cpu_to_le64(capture->cr3);
	frame->va = cpu_to_le64(capture->va);
	frame->generation = cpu_to_le32(capture->generation);
	frame->start = cpu_to_le16(capture->start);
	frame->end = cpu_to_le16(capture->start + 1);
	frame->flags = (capture->user ? CAPTURED_USER : 0) | (capture->paging ? CAPTURED_PAGING : 0) | CAPTURED_WHOLE;
	frame->bits = capture->bits;
	memset(frame->zero, 0, sizeof(frame->zero));
	publish(vm, ring, head);
	atomic64_inc(&vm->captures);
out:
	mutex_unlock(&ring->lock);
	return sent;
}

/* A frame was changed by somebody who was not seen, since then. */
void nph_send_changed(struct nph_vm *vm, u64 from_ns)
{
	struct nph_ring *ring = &vm->rings[0];

	mutex_lock(&ring->lock);
	/* Where there is no room for that, it is lost like a frame, and told when there is: from then on, or from the first that was lost. */
	if (ring->lost || !send_gap(vm, ring, 0, from_ns, ktime_get_ns(), 1, REASON_DEVICE_WRITES)) {
		ring->lost_from_ns = ring->lost ? min(ring->lost_from_ns, from_ns) : from_ns;
		ring->lost++;
	}
	mutex_unlock(&ring->lock);
}
