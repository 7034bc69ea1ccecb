/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The look after DNAT: a netfilter program in forward and local-in. */
#ifndef POSTERN_DNAT_H
#define POSTERN_DNAT_H

#include "verdict.h"
#include <bpf_core_read.h>

/* One end of a tuple; conntrack keeps IPv4 in the first word of a zeroed union. */
static __always_inline int read_end(struct addr *a, __u16 *port, const struct nf_conntrack_tuple *t,
				    const union nf_inet_addr *u3, const void *all)
{
	__u16 l3num = 0;
	__be16 be = 0;

	if (bpf_core_read(&l3num, sizeof(l3num), &t->src.l3num) || (l3num != 2 && l3num != 10) ||
	    bpf_probe_read_kernel(a, sizeof(*a), u3) || bpf_probe_read_kernel(&be, sizeof(be), all))
		return -1;
	if (l3num == 2)
		set_v4(a, a->w[0]);
	*port = bpf_ntohs(be);
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

/* What the pod's hook has said of a packet, by the addresses that it had there. */
static __always_inline struct flow *flow_of(const struct translated *t, const struct addr *dst,
					    __u16 dport)
{
	void *table = bpf_map_lookup_elem(&flows, &t->slot);
	struct flow_key k = {};

	k.raddr = *dst;
	k.lport = t->sport;
	k.rport = dport;
	k.proto = t->q.proto;
	k.local = own_index(t->ep, &t->src);
	return table ? bpf_map_lookup_elem(table, &k) : 0;
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
	struct flow *f;
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
	t.sport = h.sport;
	t.q.proto = h.proto;
	f = flow_of(&t, &h.dst, h.dport);
	if (f && (!f->service || f->opener == INGRESS))
		return NF_ACCEPT;
	t.q.remote = h.dst;
	t.q.port = h.dport;
	t.q.dir = EGRESS;
	t.q.translated = 1;
	judge(t.ep, &t.q, &t.a);
	if (t.a.rule & RULE_FORWARDED)
		return NF_ACCEPT;
	bpf_core_read(&t.len, sizeof(t.len), &skb->len);
	if (h.frag == FRAG_FIRST) {
		void *table = bpf_map_lookup_elem(&flows, &t.slot);
		struct flow_key k = {};

		k.raddr = h.dst;
		k.proto = h.proto;
		k.local = own_index(t.ep, &h.src);
		k.kind = KIND_FRAG_EGRESS;
		if (!is_v4(&k.raddr))
			k.proto = 0;
		k.lport = h.frag_id >> 16;
		k.rport = h.frag_id & 0xffff;
		if (table)
			bpf_map_delete_elem(table, &k);
	}
	return refuse(&t, cfg);
}

/*
 * A packet whose destination DNAT has changed is judged again, by the
 * destination that conntrack will send it to. So is one that was judged by a
 * Service's backends and that nobody translates, because it belongs to a
 * connection of before or answers one: it goes to the Service's address itself,
 * which may be anybody's. Runs in forward and local-in, so after prerouting's
 * DNAT. Packets of everybody else pass untouched.
 */
SEC("netfilter") int look_after_dnat(struct bpf_nf_ctx *nf)
{
	unsigned long nfct = nf->skb->_nfct;
	struct nf_conn *ct = (void *)(nfct & ~7UL);
	const struct nf_conntrack_tuple *orig, *back, *this;
	const struct settings *cfg = get_config();
	unsigned long status = 0;
	struct translated t = {};
	bool reply, judged_here;
	struct addr dst;
	struct flow *f;
	__u16 dport;
	int pod;

	if (!cfg)
		return NF_DROP;
	if (!ct)
		return look_untracked(nf->skb, nf->state->pf, cfg);
	reply = (nfct & 7) >= IP_CT_IS_REPLY;
	orig = &ct->tuplehash[0].tuple;
	back = &ct->tuplehash[1].tuple;
	this = reply ? back : orig;
	if (read_end(&t.src, &t.sport, this, &this->src.u3, &this->src.u.all))
		return NF_DROP;
	pod = find_pod(&t);
	if (pod <= 0)
		return pod ? NF_DROP : NF_ACCEPT;
	if (bpf_core_read(&status, sizeof(status), &ct->status) ||
	    bpf_core_read(&t.q.proto, sizeof(t.q.proto), &back->dst.protonum) ||
	    read_end(&dst, &dport, this, &this->dst.u3, &this->dst.u.all))
		return NF_DROP;
	t.q.dir = EGRESS;
	t.q.translated = 1;
	if (!reply && status & IPS_DST_NAT) {
		if (read_end(&t.q.remote, &t.q.port, back, &back->src.u3, &back->src.u.all))
			return NF_DROP;
	} else {
		t.q.remote = dst;
		t.q.port = dport;
		if (!has_ports(t.q.proto))
			return NF_ACCEPT;
		f = flow_of(&t, &dst, dport);
		judged_here = f ? f->service && f->opener == EGRESS : !reply && (nfct & 7) == IP_CT_NEW;
		if (!judged_here)
			return NF_ACCEPT;
		if (!f) {
			t.q.translated = 0;
			judge(t.ep, &t.q, &t.a);
			if (!t.a.service)
				return NF_ACCEPT;
			t.q.translated = 1;
		}
	}
	judge(t.ep, &t.q, &t.a);
	if (t.a.rule & RULE_FORWARDED)
		return NF_ACCEPT;
	t.len = nf->skb->len;
	return refuse(&t, cfg);
}

#endif
