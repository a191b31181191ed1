// SPDX-License-Identifier: GPL-2.0
/* Looks at every mapping of a VM, and counts those that break the rule. Formats: AMD64 APM 2, 5.3 and 15.25. */
#include <asm/pgtable_types.h>

#include "nph.h"

#define ENTRIES 512
#define ENTRY_PRESENT BIT_ULL(11)	/* SPTE_MMU_PRESENT_MASK: KVM's own mark of entries that map or lead on */
#define ENTRY_ADDRESS GENMASK_ULL(51, 12)

static void look(hpa_t table, int level, struct nph_kvm_audit *out)
{
	u64 *entries = __va(table);
	int i;

	for (i = 0; i < ENTRIES; i++) {
		u64 entry = READ_ONCE(entries[i]);

		if (!(entry & ENTRY_PRESENT) || !(entry & _PAGE_PRESENT))
			continue;
		if (level > PG_LEVEL_4K && !(entry & _PAGE_PSE)) {
			look(entry & ENTRY_ADDRESS & ~sme_me_mask, level - 1, out);
			continue;
		}
		out->leaves++;
		if ((entry & _PAGE_RW) && !(entry & _PAGE_NX))
			out->writable_executable++;
		if (level > PG_LEVEL_4K)
			out->huge++;
	}
}

/* The roots of all vCPUs, each once. Which level a root has: that of the vCPU that has it loaded, for all of a VM's are alike. */
void nph_audit(struct nph_vm *vm, struct nph_kvm_audit *out)
{
	hpa_t seen[16];
	struct kvm_vcpu *vcpu;
	unsigned long i;
	int count = 0, n, k;

	memset(out, 0, sizeof(*out));
	write_lock(&vm->kvm->mmu_lock);
	kvm_for_each_vcpu(i, vcpu, vm->kvm) {
		struct kvm_mmu *mmu = &vcpu->arch.root_mmu;

		for (n = -1; n < KVM_MMU_NUM_PREV_ROOTS; n++) {
			hpa_t root = n < 0 ? mmu->root.hpa : mmu->prev_roots[n].hpa;

			if (!VALID_PAGE(root))
				continue;
			for (k = 0; k < count && seen[k] != root; k++)
				;
			if (k < count || count == ARRAY_SIZE(seen))
				continue;
			seen[count++] = root;
			look(root & ENTRY_ADDRESS, mmu->root_role.level, out);
		}
	}
	write_unlock(&vm->kvm->mmu_lock);
}
