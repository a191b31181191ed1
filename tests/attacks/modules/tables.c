// SPDX-License-Identifier: GPL-2.0
/*
 * Runs code through page tables of its own. Writing a word to /sys/module/tables/parameters/run does it; the parameter
 * "said" is then the address of the first page that ran, or of the fault.
 *
 *   2m 2m-pat 1g 1g-pat   a leaf of that size, with the PAT bit (bit 12, which is an address bit in small leaves)
 *   reserved              a 2 MiB leaf with reserved bits: the CPU must fault, and nothing runs
 *   flags                 a root with every ignored bit of CR3 set
 *   vram                  a root in the memory of a display adapter
 *   self                  a root that maps itself; what runs is the table, in an entry that is not present
 *   roots=N               N roots, one after the other
 *
 * The code is two pages, side by side in a frame of 8 KiB: no-ops, then `mov eax, NUMBER` across the border, then `ret`.
 * NUMBER is that of the word above, from 1.
 */
#include <linux/io.h>
#include <linux/module.h>
#include <linux/mm.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <asm/desc.h>

#define ENTRIES 512
#define SMALL 0x63ull /* present, writable, accessed, dirty */
#define LARGE (SMALL | 0x80)
#define PAT (1ull << 12)
#define RESERVED (1ull << 14)
#define FRAME 0x000ffffffffff000ull
#define FAULTED (-1)

typedef int (*code_t)(void);

static char said_text[24];
static char *said = said_text;
unsigned long tables_fault_address;

static u64 root_now(void)
{
	u64 root;

	asm volatile("mov %%cr3, %0" : "=r"(root));
	return root;
}

static void load_root(u64 root)
{
	asm volatile("mov %0, %%cr3" : : "r"(root) : "memory");
}

/* A page fault at the code: back to the caller of the code, with FAULTED. On the stack: error, rip, cs, flags, rsp, ss. */
asm(".pushsection .text\n"
    ".global tables_fault\n"
    "tables_fault:\n"
    "	mov %cr2, %rax\n"
    "	mov %rax, tables_fault_address(%rip)\n"
    "	add $8, %rsp\n"
    "	mov 24(%rsp), %rax\n"
    "	mov (%rax), %rdx\n"
    "	mov %rdx, (%rsp)\n"
    "	addq $8, 24(%rsp)\n"
    "	mov $-1, %rax\n"
    "	iretq\n"
    ".popsection\n");
void tables_fault(void);

/* Calls the code with another root and, if faults are expected, with a handler of our own. */
static int run_at(u64 root, u64 address, gate_desc *gates)
{
	struct desc_ptr kept, own = { .size = 4095, .address = (unsigned long)gates };
	unsigned long flags;
	u64 before;
	int answer;

	local_irq_save(flags);
	before = root_now();
	store_idt(&kept);
	if (gates)
		load_idt(&own);
	load_root(root);
	answer = ((code_t)address)();
	load_root(before);
	if (gates)
		load_idt(&kept);
	local_irq_restore(flags);
	return answer;
}

static gate_desc *own_gates(void)
{
	gate_desc *gates = (void *)get_zeroed_page(GFP_KERNEL);
	struct desc_ptr kept;
	unsigned long to = (unsigned long)tables_fault;

	if (!gates)
		return NULL;
	store_idt(&kept);
	memcpy(gates, (void *)kept.address, min_t(int, kept.size + 1, PAGE_SIZE));
	gates[14].offset_low = to;
	gates[14].offset_middle = to >> 16;
	gates[14].offset_high = to >> 32;
	gates[14].bits.ist = 0;
	return gates;
}

/* Two pages of code, and their physical address. */
static u8 *code(int number)
{
	u8 *at = (u8 *)__get_free_pages(GFP_KERNEL, 1);

	if (!at)
		return NULL;
	memset(at, 0x90, PAGE_SIZE);
	memset(at + PAGE_SIZE, 0, PAGE_SIZE);
	at[PAGE_SIZE - 3] = 0xb8;
	at[PAGE_SIZE - 2] = number;
	at[PAGE_SIZE - 1] = 0;
	at[PAGE_SIZE + 2] = 0xc3;
	return at;
}

static int free_entry(const u64 *table)
{
	int i;

	for (i = ENTRIES - 4; i > ENTRIES / 2; i--)
		if (!table[i])
			return i;
	return -1;
}

static u64 canonical(u64 slot)
{
	return slot << 39 | 0xffff000000000000ull;
}

struct leaf {
	bool gigantic;
	u64 bits;
};

/* The address at which `root`, a copy of the present one, sees the code. */
static u64 map(u64 *root, u8 *at, struct leaf leaf)
{
	u64 *upper = (u64 *)get_zeroed_page(GFP_KERNEL), *lower = (u64 *)get_zeroed_page(GFP_KERNEL);
	u64 place = virt_to_phys(at), size = leaf.gigantic ? 1ull << 30 : 1ull << 21;
	int slot;

	memcpy(root, phys_to_virt(root_now() & FRAME), PAGE_SIZE);
	slot = free_entry(root);
	root[slot] = virt_to_phys(upper) | SMALL;
	if (leaf.gigantic) {
		upper[0] = (place & ~(size - 1)) | LARGE | leaf.bits;
	} else {
		upper[0] = virt_to_phys(lower) | SMALL;
		lower[0] = (place & ~(size - 1)) | LARGE | leaf.bits;
	}
	return canonical(slot) + (place & (size - 1));
}

static int say(u64 address)
{
	snprintf(said_text, sizeof(said_text), "%llx", address);
	return 0;
}

static int through(int number, struct leaf leaf, u64 flags, bool faults)
{
	u64 *root = (u64 *)get_zeroed_page(GFP_KERNEL);
	u8 *at = code(number);
	u64 address;
	int answer;

	if (!root || !at)
		return -ENOMEM;
	address = map(root, at, leaf);
	answer = run_at(virt_to_phys(root) | flags, address, faults ? own_gates() : NULL);
	if (answer != (faults ? FAULTED : number))
		return -EIO;
	if (faults && tables_fault_address != address)
		return -EFAULT;
	return say(address);
}

static int in_display(int number)
{
	struct pci_dev *device = pci_get_device(0x1234, 0x1111, NULL);
	u64 *root = (u64 *)get_zeroed_page(GFP_KERNEL);
	u8 *at = code(number);
	u64 address, place;
	void __iomem *window;
	int answer;

	if (!device || !root || !at)
		return -ENODEV;
	place = pci_resource_start(device, 0) + (8 << 20);
	window = ioremap(place, PAGE_SIZE);
	address = map(root, at, (struct leaf){});
	memcpy_toio(window, root, PAGE_SIZE);
	answer = run_at(place, address, NULL);
	iounmap(window);
	pci_dev_put(device);
	return answer == number ? say(address) : -EIO;
}

static int maps_itself(int number)
{
	u64 *root = (u64 *)get_zeroed_page(GFP_KERNEL);
	u64 slot, free;
	u8 *entry;

	if (!root)
		return -ENOMEM;
	memcpy(root, phys_to_virt(root_now() & FRAME), PAGE_SIZE);
	slot = free_entry(root);
	root[slot] = virt_to_phys(root) | SMALL;
	free = free_entry(root);
	entry = (u8 *)&root[free];
	entry[0] = 0xb8; /* bit 0 is clear: not present */
	entry[1] = number;
	entry[5] = 0xc3;
	if (run_at(virt_to_phys(root), canonical(slot) | slot << 30 | slot << 21 | slot << 12 | free * 8, NULL) != number)
		return -EIO;
	return say(canonical(slot) | slot << 30 | slot << 21 | slot << 12 | free * 8);
}

static int many(int number, int count)
{
	u64 *root, address = 0, *chain = NULL;
	u8 *at = code(number);
	int answer = number;

	if (!at)
		return -ENOMEM;
	/* Freed at the end only: every root is another frame. Entry 0 of the copy is the user half's and not used here. */
	while (count-- > 0 && answer == number) {
		root = (u64 *)get_zeroed_page(GFP_KERNEL);
		if (!root) {
			answer = -ENOMEM;
			break;
		}
		address = map(root, at, (struct leaf){});
		answer = run_at(virt_to_phys(root), address, NULL);
		root[0] = (u64)chain;
		chain = root;
		cond_resched();
	}
	while (chain) {
		u64 *next = (u64 *)chain[0];
		u64 *upper = phys_to_virt(chain[free_entry(phys_to_virt(root_now() & FRAME))] & FRAME);

		free_page((unsigned long)phys_to_virt(upper[0] & FRAME));
		free_page((unsigned long)upper);
		free_page((unsigned long)chain);
		chain = next;
	}
	return answer == number ? say(address) : -EIO;
}

static int set_run(const char *value, const struct kernel_param *param)
{
	int count;

	if (sysfs_streq(value, "2m"))
		return through(1, (struct leaf){}, 0, false);
	if (sysfs_streq(value, "2m-pat"))
		return through(2, (struct leaf){ .bits = PAT }, 0, false);
	if (sysfs_streq(value, "1g"))
		return through(3, (struct leaf){ .gigantic = true }, 0, false);
	if (sysfs_streq(value, "1g-pat"))
		return through(4, (struct leaf){ .gigantic = true, .bits = PAT }, 0, false);
	if (sysfs_streq(value, "reserved"))
		return through(5, (struct leaf){ .bits = RESERVED }, 0, true);
	if (sysfs_streq(value, "flags"))
		return through(6, (struct leaf){}, 0xfff, false);
	if (sysfs_streq(value, "vram"))
		return in_display(7);
	if (sysfs_streq(value, "self"))
		return maps_itself(8);
	if (sscanf(value, "roots=%d", &count) == 1)
		return many(9, count);
	return -EINVAL;
}

static const struct kernel_param_ops run_ops = { .set = set_run };

module_param_cb(run, &run_ops, NULL, 0200);
module_param(said, charp, 0400);

static int __init tables_init(void)
{
	return 0;
}

static void __exit tables_exit(void)
{
}

module_init(tables_init);
module_exit(tables_exit);
MODULE_DESCRIPTION("runs code through page tables of its own");
MODULE_LICENSE("GPL");
