/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The look after DNAT: a netfilter program in forward and local-in. */
#ifndef POSTERN_DNAT_H
#define POSTERN_DNAT_H

#include "verdict.h"
#include <bpf_core_read.h>

/* A tuple's source address; conntrack keeps IPv4 in the first word of a zeroed union. */
static __always_inline int read_tuple_addr(struct addr *a, const struct nf_conntrack_tuple *t)
{
	__u16 l3num = 0;
	__u32 v4 = 0;

	if (bpf_core_read(&l3num, sizeof(l3num), &t->src.l3num))
		return -1;
	if (l3num == 10)
		return bpf_core_read(a->w, 16, &t->src.u3.all);
	if (l3num != 2 || bpf_core_read(&v4, sizeof(v4), &t->src.u3.all[0]))
		return -1;
	set_v4(a, v4);
	return 0;
}

/* What is judged again; the remote end is where the packet goes now. */
struct translated {
	const struct endpoint *ep;
	struct addr src;
	__u16 sport;
	__u32 slot, len, revision;
	struct question q;
	struct answer a;
};

/*
 * Slot and endpoint of the pod that has t->src. Returns 1 if there is one, 0 if
 * the packet is somebody else's, -1 if it has to be dropped.
 */
static __always_inline int find_pod(struct translated *t)
{
	__u32 which, *v = bpf_map_lookup_elem(&endpoint_addrs, &t->src);

	if (!v)
		return 0;
	t->slot = *v;
	v = bpf_map_lookup_elem(&active, &t->slot);
	if (!v)
		return -1;
	which = *(volatile __u32 *)v;
	t->ep = bpf_map_lookup_elem(&endpoints, &which);
	return t->ep && !(t->ep->flags & EP_DENY_ALL) ? 1 : -1;
}

static __noinline int emit_translated(const struct translated *t)
{
	struct event *e;

	if (!t)
		return 0;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		count(COUNT_EVENTS_LOST, 1);
		return 0;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time = bpf_ktime_get_ns();
	e->packets[0] = 1;
	e->bytes[0] = t->len;
	e->laddr = t->src;
	e->raddr = t->q.remote;
	e->lport = t->sport;
	e->rport = t->q.port;
	e->gen = t->ep->gen;
	e->revision = t->revision;
	e->rule = t->a.rule & RULE_MASK;
	e->staged = t->a.staged;
	e->type = EVENT_VERDICT;
	e->dir = EGRESS;
	e->proto = t->q.proto;
	submit(e);
	return 0;
}

/* Drop, counted and told. */
static __always_inline int refuse(struct translated *t, const struct settings *cfg)
{
	t->revision = cfg->revision;
	count_rule(t->ep->gen, t->a.rule, 1, t->len);
	emit_translated(t);
	return NF_DROP;
}

/* Where a packet goes, as far as it is needed here. */
struct header {
	struct addr src, dst;
	__u32 frag_id;
	__u16 sport, dport;
	__u8 proto, frag; /* enum frag */
};

/* Read the IP header; the pod's hook has refused what is not as it should be. */
static __noinline int read_header(struct sk_buff *skb, __u32 pf, struct header *h)
{
	unsigned char *head = 0, *at, b[40] = {};
	__u16 off = 0;
	__u32 i;

	if (!skb || !h || bpf_core_read(&head, sizeof(head), &skb->head) ||
	    bpf_core_read(&off, sizeof(off), &skb->network_header))
		return -1;
	at = head + off;
	if (pf == NFPROTO_IPV4) {
		struct iphdr *ip = (void *)b;

		if (bpf_probe_read_kernel(b, 20, at))
			return -1;
		set_v4(&h->src, ip->saddr);
		set_v4(&h->dst, ip->daddr);
		h->proto = ip->protocol;
		h->frag = bpf_ntohs(ip->frag_off) & 0x1fff ? FRAG_LATER :
			  bpf_ntohs(ip->frag_off) & 0x2000 ? FRAG_FIRST : FRAG_NONE;
		h->frag_id = bpf_ntohs(ip->id);
		at += (ip->ver_ihl & 15) * 4;
	} else {
		if (bpf_probe_read_kernel(b, 40, at))
			return -1;
		__builtin_memcpy(&h->src, b + 8, 16);
		__builtin_memcpy(&h->dst, b + 24, 16);
		h->proto = b[6];
		h->frag = FRAG_NONE;
		at += 40;
		for (i = 0; i < 8; i++) {
			if (h->proto != IPPROTO_HOPOPTS && h->proto != IPPROTO_DSTOPTS &&
			    h->proto != IPPROTO_FRAGMENT)
				break;
			if (bpf_probe_read_kernel(b, 8, at))
				return -1;
			if (h->proto == IPPROTO_FRAGMENT) {
				__u32 fo = (__u32)b[2] << 8 | b[3];

				h->frag = fo & 0xfff8 ? FRAG_LATER : fo & 1 ? FRAG_FIRST : FRAG_NONE;
				h->frag_id = (__u32)b[4] << 24 | (__u32)b[5] << 16 | (__u32)b[6] << 8 | b[7];
				at += 8;
			} else {
				at += ((__u32)b[1] + 1) * 8;
			}
			h->proto = b[0];
			if (h->frag == FRAG_LATER)
				return 0;
		}
	}
	h->sport = h->dport = 0;
	if (h->frag == FRAG_LATER || !has_ports(h->proto))
		return 0;
	if (bpf_probe_read_kernel(b, 4, at))
		return -1;
	h->sport = (__u16)b[0] << 8 | b[1];
	h->dport = (__u16)b[2] << 8 | b[3];
	return 0;
}

/*
 * Where netfilter tracks nothing, it translates nothing. A flow that was judged
 * by a Service's backends is then on its way to the Service's own address, or to
 * a backend that something else has chosen: neither has been judged.
 */
static __noinline int look_untracked(struct sk_buff *skb, __u32 pf, const struct settings *cfg)
{
	struct translated t = {};
	struct header h = {};
	struct flow_key k = {};
	struct flow *f;
	void *table;
	int pod;

	if (!skb || !cfg || read_header(skb, pf, &h))
		return NF_DROP;
	t.src = h.src;
	pod = find_pod(&t);
	if (pod <= 0)
		return pod ? NF_DROP : NF_ACCEPT;
	/* Later fragments follow a first one that was judged here, or have lost their trail. */
	if (h.frag == FRAG_LATER || !has_ports(h.proto) || !(t.ep->flags & EP_GOVERNED_EGRESS))
		return NF_ACCEPT;
	table = bpf_map_lookup_elem(&flows, &t.slot);
	if (!table)
		return NF_DROP;
	k.raddr = h.dst;
	k.lport = h.sport;
	k.rport = h.dport;
	k.proto = h.proto;
	k.local = own_index(t.ep, &h.src);
	f = bpf_map_lookup_elem(table, &k);
	if (f && (!f->service || f->opener == INGRESS))
		return NF_ACCEPT;
	t.q.remote = h.dst;
	t.q.port = h.dport;
	t.q.proto = h.proto;
	t.q.dir = EGRESS;
	t.q.translated = 1;
	judge(t.ep, &t.q, &t.a);
	if (t.a.rule & RULE_FORWARDED)
		return NF_ACCEPT;
	t.sport = h.sport;
	bpf_core_read(&t.len, sizeof(t.len), &skb->len);
	if (h.frag == FRAG_FIRST) {
		k.kind = KIND_FRAG_EGRESS;
		if (!is_v4(&k.raddr))
			k.proto = 0;
		k.lport = h.frag_id >> 16;
		k.rport = h.frag_id & 0xffff;
		bpf_map_delete_elem(table, &k);
	}
	return refuse(&t, cfg);
}

/*
 * A packet whose destination DNAT has changed is judged again, by the
 * destination that conntrack will send it to. So is one that was judged by a
 * Service's backends and that nobody has translated: it goes to the Service's
 * address itself, which may be anybody's. Runs in forward and local-in, so after
 * prerouting's DNAT. Packets of everybody else pass untouched.
 */
SEC("netfilter") int look_after_dnat(struct bpf_nf_ctx *nf)
{
	unsigned long nfct = nf->skb->_nfct;
	struct nf_conn *ct = (void *)(nfct & ~7UL);
	const struct nf_conntrack_tuple *orig, *back;
	const struct settings *cfg = get_config();
	unsigned long status = 0;
	struct translated t = {};
	__be16 port = 0;
	int pod;

	if (!cfg)
		return NF_DROP;
	if (!ct)
		return look_untracked(nf->skb, nf->state->pf, cfg);
	if ((nfct & 7) >= IP_CT_IS_REPLY)
		return NF_ACCEPT;
	bpf_core_read(&status, sizeof(status), &ct->status);
	/* Only a connection's first packets can be translated anew. */
	if (!(status & IPS_DST_NAT) && (nfct & 7) != IP_CT_NEW)
		return NF_ACCEPT;
	orig = &ct->tuplehash[0].tuple;
	back = &ct->tuplehash[1].tuple;
	if (read_tuple_addr(&t.src, orig) || read_tuple_addr(&t.q.remote, back))
		return NF_DROP;
	pod = find_pod(&t);
	if (pod <= 0)
		return pod ? NF_DROP : NF_ACCEPT;
	if (bpf_core_read(&port, sizeof(port), &back->src.u.all) ||
	    bpf_core_read(&t.q.proto, sizeof(t.q.proto), &back->dst.protonum))
		return NF_DROP;
	t.q.port = bpf_ntohs(port);
	t.q.dir = EGRESS;
	if (!(status & IPS_DST_NAT)) {
		judge(t.ep, &t.q, &t.a);
		if (!t.a.service)
			return NF_ACCEPT;
	}
	t.q.translated = 1;
	judge(t.ep, &t.q, &t.a);
	if (t.a.rule & RULE_FORWARDED)
		return NF_ACCEPT;
	bpf_core_read(&port, sizeof(port), &orig->src.u.all);
	t.sport = bpf_ntohs(port);
	t.len = nf->skb->len;
	return refuse(&t, cfg);
}

#endif
