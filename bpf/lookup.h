/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Functions that are not static are "global" to the verifier: checked once, by
 * their arguments' types, instead of at every call.
 *
 * From an address and a port to a rule: address -> class (trie), (ruleset,
 * class) -> list, port -> interval (binary search). No step depends on the
 * number of rules; the search is over the intervals of one class.
 */
#ifndef POSTERN_LOOKUP_H
#define POSTERN_LOOKUP_H

#include "maps.h"
#include <bpf_endian.h>

#define V4_PREFIX bpf_htonl(0x0000ffff)

static __always_inline bool is_v4(const struct addr *a)
{
	return a->d[0] == 0 && a->w[2] == V4_PREFIX;
}

static __always_inline void set_v4(struct addr *a, __be32 v4)
{
	a->d[0] = 0;
	a->w[2] = V4_PREFIX;
	a->w[3] = v4;
}

static __always_inline bool addr_equal(const struct addr *a, const struct addr *b)
{
	return a->d[0] == b->d[0] && a->d[1] == b->d[1];
}

/*
 * The address that policy judges: one of the well-known NAT64 prefix
 * 64:ff9b::/96 is the IPv4 address it stands for (RFC 6052 2.1). As
 * packet.Judged in Go. Of destinations only: a source in that form is what a
 * translator made of some client, and anybody can write one.
 */
static __always_inline void judged(struct addr *out, const struct addr *a)
{
	*out = *a;
	if (a->w[0] == bpf_htonl(0x0064ff9b) && !a->w[1] && !a->w[2])
		set_v4(out, a->w[3]);
}

static __always_inline __u32 own_index(const struct endpoint *ep, const struct addr *a)
{
	__u32 i;

	for (i = 0; i < MAX_ADDRS; i++) {
		if (i >= ep->naddrs)
			break;
		if (addr_equal(&ep->addrs[i], a))
			return i;
	}
	return LOCAL_OTHER;
}

static __always_inline __u32 popcount64(__u64 x)
{
	x -= (x >> 1) & 0x5555555555555555ULL;
	x = (x & 0x3333333333333333ULL) + ((x >> 2) & 0x3333333333333333ULL);
	x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return (x * 0x0101010101010101ULL) >> 56;
}

#define CLASS_MISSING 0xffffffffu

struct walk {
	__u64 hi, lo; /* the rest of the address, most significant bit first */
	__u32 value, world;
};

/* How many of n sorted words are at most key. No branch: it could not be foretold. */
static __always_inline __u32 count_until(const __u32 *sep, __u32 n, __u32 key)
{
	__u64 k = 0;
	__u32 i;

#pragma unroll
	for (i = 0; i < n; i++) {
		__u64 d = (__u64)sep[i] - key - 1;

		asm volatile("" : "+r"(d));
		k += d >> 63;
	}
	return k;
}

static __always_inline __u64 word64(const struct trie_line *n, __u32 i)
{
	return n->w[i] | (__u64)n->w[i + 1] << 32;
}

static __always_inline void shift(struct walk *w, __u32 bytes)
{
	__u32 bits = (bytes & 7) * 8;

	if (bytes >= 8) {
		w->hi = w->lo;
		w->lo = 0;
	}
	if (bits) {
		w->hi = w->hi << bits | w->lo >> ((64 - bits) & 63);
		w->lo <<= bits;
	}
}

static long trie_step(__u32 i, struct walk *w)
{
	void *m = bpf_map_lookup_elem(&trie, &w->world);
	__u32 kind = w->value & TRIE_KIND, idx = w->value & TRIE_INDEX, key = w->hi >> 32, k;
	struct trie_line *n;

	n = m ? bpf_map_lookup_elem(m, &idx) : 0;
	if (!n)
		goto missing;
	if (kind == TRIE_TREE) {
		k = count_until(n->w, 15, key);
		if (k > n->w[15])
			k = n->w[15];
		idx += 1 + k;
		n = bpf_map_lookup_elem(m, &idx);
		if (!n)
			goto missing;
		kind = TRIE_LEAF;
	}
	if (kind == TRIE_LEAF) {
		k = count_until(n->w, 7, key);
		w->value = *(volatile __u32 *)&n->w[8 + (k & 7)];
		w->hi = w->hi << 32 | w->lo >> 32;
		w->lo <<= 32;
	} else if (kind == TRIE_DENSE) {
		__u32 byte = w->hi >> 56, word = byte >> 6;

		k = popcount64(word64(n, (word & 3) * 2) & ~0ULL >> (63 - (byte & 63))) + 8;
		if (word)
			k += n->w[8] >> ((word - 1) * 8 & 31) & 0xff;
		if (k >= 16) {
			idx += k / 16;
			n = bpf_map_lookup_elem(m, &idx);
			if (!n)
				goto missing;
		}
		w->value = *(volatile __u32 *)&n->w[k & 15];
		shift(w, 1);
	} else {
		__u32 bytes = n->w[0] & SKIP_BYTES, bits = (bytes & 7) * 8;
		__u64 hi = w->hi, lo = w->lo;

		if (bytes >= 8)
			lo = bits ? lo >> ((64 - bits) & 63) << ((64 - bits) & 63) : 0;
		else
			lo = 0, hi = bits ? hi >> ((64 - bits) & 63) << ((64 - bits) & 63) : 0;
		if (hi != word64(n, 2) || lo != word64(n, 4)) {
			w->value = n->w[1];
			return 1;
		}
		shift(w, bytes);
		k = 0;
		if (n->w[0] & SKIP_WINDOW) {
			k = count_until(n->w + 6, 4, w->hi >> 32);
			shift(w, 4);
		}
		w->value = *(volatile __u32 *)&n->w[10 + (k & 7)];
	}
	return !(w->value & TRIE_CHILD);
missing:
	w->value = CLASS_MISSING;
	return 1;
}

/*
 * Class of an address, with its property bits; CLASS_MISSING if the trie is
 * inconsistent, which denies. Addresses outside every prefix have class 0.
 */
__noinline __u32 trie_walk(const struct addr *a, __u32 world)
{
	struct walk w = { .world = world };
	struct trie_line *line;
	__u32 root, idx;
	void *m;

	if (!a)
		return CLASS_MISSING;
	if (is_v4(a)) {
		__u32 v4 = bpf_ntohl(a->w[3]);

		root = v4 >> 16;
		w.hi = (__u64)v4 << 48;
	} else {
		w.hi = bpf_be64_to_cpu(a->d[0]);
		w.lo = bpf_be64_to_cpu(a->d[1]);
		root = 65536 + (__u32)(w.hi >> 48);
		shift(&w, 2);
	}
	idx = root / 16;
	m = bpf_map_lookup_elem(&trie, &world);
	line = m ? bpf_map_lookup_elem(m, &idx) : 0;
	if (!line)
		return CLASS_MISSING;
	w.value = *(volatile __u32 *)&line->w[root & 15];
	if (w.value & TRIE_CHILD)
		bpf_loop(14, trie_step, &w, 0);
	/* A child where the address ends, or a hole: deny. */
	return w.value & TRIE_CHILD ? CLASS_MISSING : w.value;
}

/*
 * What the ruleset says of (class, proto, port): RULE_* bits and a rule ID;
 * 0 (dropped, REASON_NONE) if the ruleset is missing.
 */
__noinline __u32 ruleset_lookup(__u32 world, __u32 ruleset, __u32 class, __u32 protoport)
{
	void *tbl = bpf_map_lookup_elem(&cells, &world);
	void *ents = bpf_map_lookup_elem(&entries, &world);
	__u32 lo, n, mid, at;
	struct entry *e;
	__u64 *cell;
	int i;

	if (!tbl || !ents || !ruleset)
		return REASON_NO_RULESET;
	class &= CLASS_MASK;
	at = ruleset + (class >> CELL_PAGE_BITS);
	cell = bpf_map_lookup_elem(tbl, &at);
	if (!cell)
		return REASON_NO_RULESET;
	at = (__u32)*(volatile __u64 *)cell + (class & ((1 << CELL_PAGE_BITS) - 1));
	cell = bpf_map_lookup_elem(tbl, &at);
	if (!cell)
		return REASON_NO_RULESET;
	/* Last entry with start <= protoport; the first starts at 0. */
	lo = *cell >> CELL_LEN_BITS;
	n = *cell & ((1 << CELL_LEN_BITS) - 1);
	if (!n)
		return REASON_NO_RULESET;
	for (i = 0; i < LIST_STEPS; i++) {
		__u32 half = n >> 1;

		if (n <= 1)
			break;
		mid = lo + half;
		e = bpf_map_lookup_elem(ents, &mid);
		if (!e)
			return REASON_NO_RULESET;
		if (e->start <= protoport) {
			lo = mid;
			n -= half;
		} else {
			n = half;
		}
	}
	e = bpf_map_lookup_elem(ents, &lo);
	if (!e)
		return REASON_NO_RULESET;
	return e->rule;
}

#endif
