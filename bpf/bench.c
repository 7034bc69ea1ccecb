// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * For benchmarks only, never attached: the entry point from_pod behind a
 * change of the packet, so that each repetition of a test run is another flow.
 */
#include "postern.c"

#define BENCH_TARGETS (1 << 20)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, BENCH_TARGETS);
	__type(key, __u32);
	__type(value, struct addr);
} bench_targets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} bench_next SEC(".maps");

/* Next target address and, every 60,000 packets, the next source port. */
static __always_inline int next_flow(struct __sk_buff *skb)
{
	__u32 zero = 0, i, *n = bpf_map_lookup_elem(&bench_next, &zero);
	struct addr *a;
	__be16 port;

	if (!n)
		return -1;
	i = (*n)++;
	port = bpf_htons(1024 + i % 60000);
	i &= BENCH_TARGETS - 1;
	a = bpf_map_lookup_elem(&bench_targets, &i);
	if (!a)
		return -1;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		bpf_skb_store_bytes(skb, ETH_HLEN + 16, &a->w[3], 4, 0);
		bpf_skb_store_bytes(skb, ETH_HLEN + 20, &port, 2, 0);
	} else {
		bpf_skb_store_bytes(skb, ETH_HLEN + 24, a, 16, 0);
		bpf_skb_store_bytes(skb, ETH_HLEN + 40, &port, 2, 0);
	}
	return 0;
}

/* What the change itself costs. */
SEC("tcx/ingress") int bench_nothing(struct __sk_buff *skb)
{
	return next_flow(skb) ? TCX_DROP : TCX_NEXT;
}

/* What a test run costs. */
SEC("tcx/ingress") int bench_empty(struct __sk_buff *skb)
{
	return TCX_NEXT;
}

/* A first packet whose flow stays: user space empties the table now and then. */
SEC("tcx/ingress") int bench_open(struct __sk_buff *skb)
{
	return next_flow(skb) ? TCX_DROP : handle(skb, EGRESS);
}

/*
 * The flow is removed again, so that the table stays as small as one pod's and
 * its memory is used again, as it is on a node. The removal is part of the figure.
 */
SEC("tcx/ingress") int bench_first(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct ctx *c;
	void *table;
	int ret;

	if (next_flow(skb))
		return TCX_DROP;
	ret = handle(skb, EGRESS);
	c = bpf_map_lookup_elem(&scratch, &zero);
	table = c ? bpf_map_lookup_elem(&flows, &c->slot) : 0;
	if (table)
		bpf_map_delete_elem(table, &c->key);
	return ret;
}
