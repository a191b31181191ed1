// SPDX-License-Identifier: GPL-2.0
/* /dev/nephoscope-kvm, and the descriptors of watches. */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include "nph.h"

static int watch_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct nph_vm *vm = file->private_data;

	return remap_vmalloc_range(vma, vm->memory, vma->vm_pgoff);
}

static __poll_t watch_poll(struct file *file, poll_table *wait)
{
	struct nph_vm *vm = file->private_data;

	poll_wait(file, &vm->wait, wait);
	return (atomic_read(&vm->wake) ? EPOLLIN : 0) | (READ_ONCE(vm->gone) ? EPOLLHUP : 0);
}

/* As from an eventfd: how often it was woken since, which is once or not at all. */
static ssize_t watch_read(struct file *file, char __user *to, size_t len, loff_t *at)
{
	struct nph_vm *vm = file->private_data;
	u64 woken = atomic_xchg(&vm->wake, 0);

	if (len < sizeof(woken))
		return -EINVAL;
	if (!woken)
		return -EAGAIN;
	return copy_to_user(to, &woken, sizeof(woken)) ? -EFAULT : sizeof(woken);
}

static void inform(struct nph_vm *vm, struct nph_kvm_info *info)
{
	struct task_struct *vmm;
	struct kvm_vcpu *vcpu = kvm_get_vcpu(vm->kvm, 0);
	int idx;

	memset(info, 0, sizeof(*info));
	info->vcpus = atomic_read(&vm->kvm->online_vcpus);
	rcu_read_lock();
	vmm = vcpu && vcpu->pid ? pid_task(rcu_dereference(vcpu->pid), PIDTYPE_PID) : NULL;
	info->pid = vmm ? task_tgid_vnr(vmm) : 0;
	rcu_read_unlock();
	info->attached_ns = vm->attached_ns;
	info->captures = atomic64_read(&vm->captures);
	info->writes = atomic64_read(&vm->writes);
	info->emulated = atomic64_read(&vm->emulated);
	info->host_writes = atomic64_read(&vm->host_writes);
	info->resets = atomic64_read(&vm->resets);
	info->zaps = atomic64_read(&vm->zaps);
	info->ring_waits = atomic64_read(&vm->ring_waits);
	info->ring_lost = atomic64_read(&vm->ring_lost);
	info->unreadable = atomic64_read(&vm->unreadable);
	info->nested = atomic64_read(&vm->nested);
	info->unguarded = atomic64_read(&vm->unguarded);
	info->pinned = atomic64_read(&vm->pinned);
	info->exposed = atomic64_read(&vm->exposed);
	info->rechecks = atomic64_read(&vm->rechecks);
	info->changed = atomic64_read(&vm->changed);
	info->recheck_ns = atomic64_read(&vm->recheck_ns);
	info->guarded = READ_ONCE(vm->guard) != NULL;
	if (vcpu) {
		info->cr0 = vcpu->arch.cr0;
		info->cr4 = vcpu->arch.cr4;
		info->efer = vcpu->arch.efer;
		info->physical_bits = vcpu->arch.maxphyaddr;
	}
	idx = srcu_read_lock(&vm->kvm->srcu);
	info->slots = kvm_memslots(vm->kvm)->generation;
	srcu_read_unlock(&vm->kvm->srcu, idx);
	info->gone = READ_ONCE(vm->gone);
}

/* What the guest sees outside of system management mode. */
static int slots(struct nph_vm *vm, struct nph_kvm_slots *how)
{
	struct kvm_memory_slot *slot;
	struct nph_kvm_slot *found;
	u32 count = 0;
	int bkt, idx, r;

	if (how->room > NPH_KVM_SLOTS_MOST)
		return -EINVAL;
	found = kvcalloc(how->room, sizeof(*found), GFP_KERNEL_ACCOUNT);
	if (!found)
		return -ENOMEM;
	idx = srcu_read_lock(&vm->kvm->srcu);
	kvm_for_each_memslot(slot, bkt, __kvm_memslots(vm->kvm, 0)) {
		/* KVM's own, which the guest does not see as memory. */
		if (slot->id >= KVM_USER_MEM_SLOTS)
			continue;
		if (count < how->room)
			found[count] = (struct nph_kvm_slot){
				.gpa = (u64)slot->base_gfn << PAGE_SHIFT,
				.bytes = (u64)slot->npages << PAGE_SHIFT,
				.hva = slot->userspace_addr,
				.read_only = !!(slot->flags & KVM_MEM_READONLY),
			};
		count++;
	}
	srcu_read_unlock(&vm->kvm->srcu, idx);
	how->count = count;
	r = copy_to_user(u64_to_user_ptr(how->at), found, sizeof(*found) * min(count, how->room)) ? -EFAULT : 0;
	kvfree(found);
	return r;
}

static int frames(struct nph_vm *vm, const struct nph_kvm_frames *how)
{
	void __user *at = u64_to_user_ptr(how->at);
	size_t bytes = how->count * sizeof(u64);
	u64 *numbers;
	int r = 0;
	u32 i;

	if (how->count > NPH_KVM_FRAMES_MOST || how->reserved)
		return -EINVAL;
	numbers = kvmalloc(bytes, GFP_KERNEL_ACCOUNT);
	if (!numbers)
		return -ENOMEM;
	if (copy_from_user(numbers, at, bytes)) {
		r = -EFAULT;
	} else {
		for (i = 0; i < how->count; i++) {
			void *entry = xa_load(&vm->frames, numbers[i] >> PAGE_SHIFT);

			numbers[i] = entry ? xa_to_value(entry) : 0;
		}
		if (copy_to_user(at, numbers, bytes))
			r = -EFAULT;
	}
	kvfree(numbers);
	return r;
}

static long watch_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct nph_vm *vm = file->private_data;
	union {
		struct nph_kvm_info info;
		struct nph_kvm_audit audit;
		struct nph_kvm_slots slots;
		struct nph_kvm_frames frames;
		s32 fd;
	} out;
	int r;

	switch (command) {
	case NPH_KVM_INFO:
		inform(vm, &out.info);
		break;
	case NPH_KVM_AUDIT:
		nph_audit(vm, &out.audit);
		break;
	case NPH_KVM_SLOTS:
		if (copy_from_user(&out.slots, (void __user *)argument, sizeof(out.slots)))
			return -EFAULT;
		r = slots(vm, &out.slots);
		if (r)
			return r;
		break;
	case NPH_KVM_FRAMES:
		if (copy_from_user(&out.frames, (void __user *)argument, sizeof(out.frames)))
			return -EFAULT;
		return frames(vm, &out.frames);
	case NPH_KVM_GUARD:
		if (copy_from_user(&out.fd, (void __user *)argument, sizeof(out.fd)))
			return -EFAULT;
		return nph_vm_guard(vm, out.fd);
	default:
		return -ENOTTY;
	}
	return copy_to_user((void __user *)argument, &out, _IOC_SIZE(command)) ? -EFAULT : 0;
}

static int watch_release(struct inode *inode, struct file *file)
{
	nph_vm_unwatch(file->private_data);
	return 0;
}

static const struct file_operations watch_operations = {
	.owner = THIS_MODULE,
	.mmap = watch_mmap,
	.poll = watch_poll,
	.read = watch_read,
	.unlocked_ioctl = watch_ioctl,
	.release = watch_release,
	.llseek = noop_llseek,
};

/* What a VM must be, to be one that can be watched. */
static int fits(struct kvm *kvm)
{
	struct kvm_vcpu *vcpu = kvm_get_vcpu(kvm, 0);

	if (!boot_cpu_has(X86_FEATURE_SVM)) {
		pr_nph(KERN_ERR, "only AMD processors are supported: on Intel's, this was never tried");
		return -EOPNOTSUPP;
	}
	if (!nph_nested_paging()) {
		pr_nph(KERN_ERR, "KVM runs without nested paging: load kvm_amd with npt=1");
		return -EOPNOTSUPP;
	}
	if (vcpu && vcpu->arch.guest_state_protected) {
		pr_nph(KERN_ERR, "this VM's memory and registers are encrypted (SEV-ES or SEV-SNP): nothing of it can be seen");
		return -EOPNOTSUPP;
	}
	return 0;
}

static long attach(struct nph_kvm_attach __user *argument)
{
	struct nph_kvm_attach how;
	struct nph_vm *vm;
	struct file *file;
	int r;

	if (copy_from_user(&how, argument, sizeof(how)))
		return -EFAULT;
	if (how.version != NPH_KVM_VERSION)
		return -EPROTO;
	file = fget(how.vm_fd);
	if (!file)
		return -EBADF;
	r = file_is_kvm(file) ? fits(file->private_data) : -EINVAL;
	if (!r)
		r = nph_vm_watch(file->private_data, &how, &vm);
	fput(file);
	if (r)
		return r;
	r = anon_inode_getfd("nephoscope-kvm", &watch_operations, vm, O_RDWR | O_CLOEXEC);
	if (r < 0)
		nph_vm_unwatch(vm);
	return r;
}

static long device_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (command != NPH_KVM_ATTACH)
		return -ENOTTY;
	return attach((void __user *)argument);
}

static const struct file_operations device_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = device_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "nephoscope-kvm",
	.fops = &device_operations,
	.mode = 0600,
};

static int __init nph_init(void)
{
	int r = nph_hooks_init();

	return r ?: misc_register(&device);
}

static void __exit nph_exit(void)
{
	misc_deregister(&device);
}

module_init(nph_init);
module_exit(nph_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Tells a Nephoscope monitor which code KVM guests execute");
