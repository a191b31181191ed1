// SPDX-License-Identifier: GPL-2.0
/*
 * Whether KVM's functions take what we think they take: by the types that the kernel carries with it (BTF,
 * Documentation/bpf/btf.rst), and not by its version, which says nothing of what a distribution put into it.
 *
 * A signature is written down as the bytes of each parameter, or as * with the name of the structure that it points to.
 */
#include <linux/btf.h>
#include <linux/fs.h>
#include <linux/kernel_read_file.h>
#include <linux/vmalloc.h>

#include "nph.h"

struct types {
	void *bytes;
	const struct btf_header *header;
	const struct btf_type **at;	/* by number, from `first` on */
	u32 first, count;
	u32 first_string;
	const struct types *base;
};

/* Bytes behind the head of a type. */
static size_t tail(const struct btf_type *type)
{
	u32 n = BTF_INFO_VLEN(type->info);

	switch (BTF_INFO_KIND(type->info)) {
	case BTF_KIND_INT:
	case BTF_KIND_VAR:
	case BTF_KIND_DECL_TAG:
		return sizeof(u32);
	case BTF_KIND_ARRAY:
		return sizeof(struct btf_array);
	case BTF_KIND_STRUCT:
	case BTF_KIND_UNION:
	case BTF_KIND_DATASEC:
		return n * sizeof(struct btf_member);
	case BTF_KIND_ENUM:
		return n * sizeof(struct btf_enum);
	case BTF_KIND_ENUM64:
		return n * sizeof(struct btf_enum64);
	case BTF_KIND_FUNC_PROTO:
		return n * sizeof(struct btf_param);
	default:
		return 0;
	}
}

static void forget(struct types *types)
{
	vfree(types->bytes);
	kvfree(types->at);
	memset(types, 0, sizeof(*types));
}

static int read(struct types *types, const char *module, const struct types *base)
{
	char path[64];
	const void *at, *end;
	size_t size;
	ssize_t got;
	u32 most;

	snprintf(path, sizeof(path), "/sys/kernel/btf/%s", module);
	got = kernel_read_file_from_path(path, 0, &types->bytes, 64 << 20, &size, READING_UNKNOWN);
	if (got < 0) {
		types->bytes = NULL;
		pr_nph(KERN_ERR, "%s cannot be read (%zd): what KVM's functions take cannot be checked", path, got);
		return got;
	}
	types->header = types->bytes;
	types->base = base;
	types->first = base ? base->first + base->count : 1;
	types->first_string = base ? base->first_string + base->header->str_len : 0;
	if (got < sizeof(*types->header) || types->header->magic != BTF_MAGIC)
		goto bad;
	at = types->bytes + types->header->hdr_len + types->header->type_off;
	end = at + types->header->type_len;
	if (end > types->bytes + got || at > end)
		goto bad;
	most = types->header->type_len / sizeof(struct btf_type);
	types->at = kvcalloc(most, sizeof(*types->at), GFP_KERNEL);
	if (!types->at)
		return -ENOMEM;
	while (at + sizeof(struct btf_type) <= end) {
		const struct btf_type *type = at;

		types->at[types->count++] = type;
		at += sizeof(*type) + tail(type);
	}
	if (at == end)
		return 0;
bad:
	pr_nph(KERN_ERR, "%s is not as expected", path);
	return -EINVAL;
}

static const struct btf_type *type_of(const struct types *types, u32 number)
{
	for (; types; types = types->base)
		if (number >= types->first)
			return number - types->first < types->count ? types->at[number - types->first] : NULL;
	return NULL;
}

static const char *string_of(const struct types *types, u32 offset)
{
	for (; types; types = types->base)
		if (offset >= types->first_string)
			return offset - types->first_string < types->header->str_len ?
				types->bytes + types->header->hdr_len + types->header->str_off + offset - types->first_string : "?";
	return "?";
}

/* Without const, volatile and other names for the same. */
static const struct btf_type *bare(const struct types *types, u32 number)
{
	const struct btf_type *type = type_of(types, number);
	int depth;

	for (depth = 0; type && depth < 16; depth++) {
		switch (BTF_INFO_KIND(type->info)) {
		case BTF_KIND_TYPEDEF:
		case BTF_KIND_CONST:
		case BTF_KIND_VOLATILE:
		case BTF_KIND_RESTRICT:
			type = type_of(types, type->type);
			break;
		default:
			return type;
		}
	}
	return NULL;
}

static int put_type(const struct types *types, u32 number, char *out, size_t room)
{
	const struct btf_type *type = bare(types, number);

	if (!type)
		return scnprintf(out, room, "void");
	if (BTF_INFO_KIND(type->info) == BTF_KIND_PTR) {
		type = bare(types, type->type);
		if (type && (BTF_INFO_KIND(type->info) == BTF_KIND_STRUCT || BTF_INFO_KIND(type->info) == BTF_KIND_FWD))
			return scnprintf(out, room, "*%s", string_of(types, type->name_off));
		return scnprintf(out, room, "*");
	}
	return scnprintf(out, room, "%u", type->size);
}

/* 0 if the kernel has no such function. */
static int signature(const struct types *types, const char *name, char *out, size_t room)
{
	u32 i, n;

	for (i = 0; i < types->count; i++) {
		const struct btf_type *type = types->at[i], *proto;
		const struct btf_param *params;
		int len;

		if (BTF_INFO_KIND(type->info) != BTF_KIND_FUNC || strcmp(string_of(types, type->name_off), name))
			continue;
		proto = type_of(types, type->type);
		if (!proto || BTF_INFO_KIND(proto->info) != BTF_KIND_FUNC_PROTO)
			return 0;
		params = (const void *)(proto + 1);
		len = put_type(types, proto->type, out, room);
		for (n = 0; n < BTF_INFO_VLEN(proto->info); n++) {
			len += scnprintf(out + len, room - len, n ? ", " : " (");
			len += put_type(types, params[n].type, out + len, room - len);
		}
		return len + scnprintf(out + len, room - len, ")");
	}
	return 0;
}

static const struct {
	const char *module, *name, *signature;
	bool may_lack;
} expected[] = {
	{ "kvm", "kvm_mmu_page_fault", "4 (*kvm_vcpu, 8, 8, *, 4)" },
	{ "kvm", "make_spte", "1 (*kvm_vcpu, *kvm_mmu_page, *kvm_memory_slot, 4, 8, 8, 8, 1, 1, 1, *)" },
	{ "kvm", "kvm_zap_gfn_range", "void (*kvm, 8, 8)" },
	{ "kvm", "mark_page_dirty_in_slot", "void (*kvm, *kvm_memory_slot, 8)" },
	{ "kvm", "kvm_mmu_max_mapping_level", "4 (*kvm, *kvm_memory_slot, 8, 4)" },
	{ "kvm", "__kvm_mmu_max_mapping_level", "4 (*kvm, *kvm_memory_slot, 8, 4, 1)", true },
	{ "kvm_amd", "svm_get_cpl", "4 (*kvm_vcpu)" },
	{ "kvm_amd", "svm_get_cs_db_l_bits", "void (*kvm_vcpu, *, *)" },
};

/* What the kernel's own function for write protection by userfaultfd takes. Without it, VMs are watched all the same. */
static enum nph_protect protect_of(const struct types *vmlinux)
{
	char found[256];

	if (!signature(vmlinux, "mwriteprotect_range", found, sizeof(found)))
		return NPH_PROTECT_NONE;
	if (!strcmp(found, "4 (*userfaultfd_ctx, 8, 8, 1)"))
		return NPH_PROTECT_CTX;
	if (!strcmp(found, "4 (*mm_struct, 8, 8, 1, *)"))
		return NPH_PROTECT_MM;
	pr_nph(KERN_WARNING, "mwriteprotect_range is %s, which is not supported: writes by devices will not be seen", found);
	return NPH_PROTECT_NONE;
}

int nph_check_signatures(enum nph_protect *protect)
{
	struct types vmlinux = {}, module = {};
	const char *opened = "";
	char found[256];
	int i, r;

	r = read(&vmlinux, "vmlinux", NULL);
	for (i = 0; !r && i < ARRAY_SIZE(expected); i++) {
		if (strcmp(opened, expected[i].module)) {
			forget(&module);
			opened = expected[i].module;
			r = read(&module, opened, &vmlinux);
			if (r)
				break;
		}
		if (!signature(&module, expected[i].name, found, sizeof(found))) {
			if (expected[i].may_lack)
				continue;
			strscpy(found, "not there", sizeof(found));
		}
		if (strcmp(found, expected[i].signature)) {
			pr_nph(KERN_ERR, "%s of %s is %s, but %s is what is supported: this kernel's KVM cannot be watched",
			       expected[i].name, opened, found, expected[i].signature);
			r = -EOPNOTSUPP;
		}
	}
	if (!r)
		*protect = protect_of(&vmlinux);
	forget(&module);
	forget(&vmlinux);
	return r;
}
