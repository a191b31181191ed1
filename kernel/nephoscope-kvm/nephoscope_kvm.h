/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * What /dev/nephoscope-kvm understands. The ring and the frames in it are those of the QEMU plugin
 * (crates/wire/src/ring.rs and frame.rs).
 */
#ifndef NEPHOSCOPE_KVM_H
#define NEPHOSCOPE_KVM_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Goes up with every change of what follows, of the ring or of the frames. */
#define NPH_KVM_VERSION 5

/* On the device: begin to watch a VM. The answer is a descriptor of the watch; the watch ends when it is closed. */
struct nph_kvm_attach {
	__u32 version;		/* NPH_KVM_VERSION */
	__s32 vm_fd;		/* the VM, as KVM_CREATE_VM gave it */
	__u32 rings;		/* one per vCPU; vCPUs beyond them share the last */
	__u32 ring_bytes;	/* of frames, a power of two */
	__u32 full_ms;		/* how long a vCPU waits for room in its ring */
	__u32 reserved;
};
#define NPH_KVM_ATTACH _IOW('N', 1, struct nph_kvm_attach)

/* On a watch: what it is, and what it counted. */
struct nph_kvm_info {
	__u32 vcpus;		/* that the VM has now */
	__u32 pid;		/* of the VMM, as this process sees it; 0 if it does not */
	__u64 attached_ns;	/* CLOCK_MONOTONIC */
	__u64 captures;		/* first fetches: frames sent */
	__u64 writes;		/* first writes to an executable frame */
	__u64 emulated;		/* writes by the instruction that runs in the same frame */
	__u64 host_writes;	/* KVM's own writes to an executable frame */
	__u64 resets;		/* executable frames whose memory the host took away or moved */
	__u64 zaps;		/* mappings torn down to take a right away */
	__u64 ring_waits;
	__u64 ring_lost;
	__u64 unreadable;	/* frames that could not be copied */
	__u64 nested;		/* exits of guests inside the guest, which are not watched */
	__u64 unguarded;	/* frames that became executable while devices could write to them unseen */
	__u64 pinned;		/* of those, the ones that the host's kernel had lent to a device */
	__u64 exposed;		/* frames that are executable now while devices can write to them unseen */
	__u64 rechecks;		/* executable frames that were compared with what was captured from them */
	__u64 changed;		/* of those, the ones that were not the same any more */
	__u64 recheck_ns;	/* how long comparing took, in a thread of the kernel */
	__u64 cr0, cr4, efer;	/* of the first vCPU, at its last exit */
	__u32 physical_bits;	/* MAXPHYADDR of it */
	__u32 gone;		/* the VM has ended */
	__u32 guarded;		/* NPH_KVM_GUARD was called */
	__u32 slots;		/* another number whenever the guest sees memory elsewhere */
};
#define NPH_KVM_INFO _IOR('N', 2, struct nph_kvm_info)

/* On a watch: how many mappings break its promise now. Holds the VM up while it looks at all of them. */
struct nph_kvm_audit {
	__u64 leaves;
	__u64 writable_executable;
	__u64 huge;
};
#define NPH_KVM_AUDIT _IOR('N', 3, struct nph_kvm_audit)

/*
 * On a watch: guard executable frames against writes by the host itself, as device models and vhost make them. The
 * descriptor is a userfaultfd of the VMM's process, with guest memory registered for write protection; the VMM lifts the
 * protection of what it wants to write. What is executable already has to be fetched anew.
 */
#define NPH_KVM_GUARD _IOW('N', 4, __s32)

/* On a watch: where the guest sees its memory now, and where that lies in the VMM's process. */
struct nph_kvm_slot {
	__u64 gpa;
	__u64 bytes;
	__u64 hva;
	__u32 read_only;
	__u32 reserved;
};
struct nph_kvm_slots {
	__u64 at;		/* of an array of struct nph_kvm_slot, in no order */
	__u32 room;		/* of it */
	__u32 count;		/* how many there are; those beyond the room are left out */
};
#define NPH_KVM_SLOTS _IOWR('N', 5, struct nph_kvm_slots)
#define NPH_KVM_SLOTS_MOST 4096

/*
 * On a watch: what frames are now. Each number, a frame's address in the VMM, is replaced by its generation times two, plus one
 * if it is executable; by 0 if it never was.
 */
struct nph_kvm_frames {
	__u64 at;		/* of an array of __u64 */
	__u32 count;
	__u32 reserved;
};
#define NPH_KVM_FRAMES _IOW('N', 6, struct nph_kvm_frames)
#define NPH_KVM_FRAMES_MOST 65536

/*
 * mmap of a watch: ring n lies at n * (NPH_KVM_RING_HEAD + ring_bytes); after the last ring follows one page per ring
 * with the page-table roots that its vCPU was seen with.
 */
#define NPH_KVM_RING_HEAD 4096
#define NPH_KVM_ROOTS 512

#endif
