/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The look after DNAT: a netfilter program in forward and local-in. */
#ifndef POSTERN_DNAT_H
#define POSTERN_DNAT_H

#include "verdict.h"
#include <bpf_core_read.h>

/* What is judged again; the remote end is where the packet goes now. */
struct translated {
	const struct endpoint *ep;
	struct addr src;
	__u16 sport;
	__u32 slot, len, revision;
	__u32 shared; /* other pods have src too, and the packet may be theirs */
	struct question q;
	struct answer a;
};

/*
 * Slot and endpoint of the pod that sent the packet: by the interface that it
 * came in through or, behind a bridge, by its source address. Returns 1 if there
 * is one, 0 if the packet is somebody else's, -1 if it has to be dropped.
 */
static __always_inline int find_pod(struct translated *t, const struct nf_hook_state *state)
{
	__u32 which, ifindex = state->in ? state->in->ifindex : 0;
	__u32 *v = bpf_map_lookup_elem(&endpoint_slots, &ifindex);

	if (!v)
		v = bpf_map_lookup_elem(&endpoint_addrs, &t->src);
	if (!v)
		return 0;
	t->slot = *v & ~ADDR_SHARED;
	t->shared = *v & ADDR_SHARED;
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

	if (!skb || !h)
		return -1;
	head = skb->head;
	off = skb->network_header;
	at = head + off;
	if (pf == NFPROTO_IPV4) {
		struct iphdr *ip = (void *)b;

		/* Ports too: a packet has 28 bytes at least where they are looked at. */
		if (bpf_probe_read_kernel(b, 24, at))
			return -1;
		set_v4(&h->src, ip->saddr);
		set_v4(&h->dst, ip->daddr);
		h->proto = ip->protocol;
		h->frag = bpf_ntohs(ip->frag_off) & 0x1fff ? FRAG_LATER :
			  bpf_ntohs(ip->frag_off) & 0x2000 ? FRAG_FIRST : FRAG_NONE;
		h->frag_id = bpf_ntohs(ip->id);
		if (ip->ver_ihl == 0x45 && h->frag != FRAG_LATER && has_ports(h->proto)) {
			h->sport = (__u16)b[20] << 8 | b[21];
			h->dport = (__u16)b[22] << 8 | b[23];
			return 0;
		}
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

/* The backend that DNAT has chosen, from the connection's answering tuple. */
static __always_inline int read_backend(struct question *q, const struct nf_conntrack_tuple *back)
{
	__u16 l3num = 0;
	__be16 port = 0;

	if (bpf_core_read(&l3num, sizeof(l3num), &back->src.l3num) || (l3num != 2 && l3num != 10) ||
	    bpf_core_read(&q->remote, sizeof(q->remote), &back->src.u3) ||
	    bpf_core_read(&port, sizeof(port), &back->src.u.all))
		return -1;
	if (l3num == 2) /* in the first word of a zeroed union */
		set_v4(&q->remote, q->remote.w[0]);
	q->port = bpf_ntohs(port);
	return 0;
}

/*
 * Note in the pod's own flow, which has the addresses before DNAT, where its
 * packets go; or, refused, remove it: what comes back is no answer any more.
 */
static __noinline int note_backend(const struct translated *t, const struct nf_conntrack_tuple *orig, __u32 refused)
{
	struct flow_key k = {};
	__u16 l3num = 0;
	__be16 port = 0;
	struct flow *f;
	void *table;

	if (!t || bpf_core_read(&l3num, sizeof(l3num), &orig->src.l3num) ||
	    bpf_core_read(&k.raddr, sizeof(k.raddr), &orig->dst.u3) ||
	    bpf_core_read(&port, sizeof(port), &orig->dst.u.all))
		return 0;
	if (l3num == 2)
		set_v4(&k.raddr, k.raddr.w[0]);
	k.lport = t->sport;
	k.rport = bpf_ntohs(port);
	k.proto = t->q.proto;
	k.local = own_index(t->ep, &t->src);
	table = bpf_map_lookup_elem(&flows, &t->slot);
	if (!table)
		return 0;
	if (refused)
		return bpf_map_delete_elem(table, &k);
	f = bpf_map_lookup_elem(table, &k);
	if (f && f->service && !f->backend_port) {
		f->backend = t->q.remote;
		f->backend_port = t->q.port;
	}
	return 0;
}

/*
 * A Service is decided by its backends, at the pod's interface; where its packets
 * really go is known only here, in forward and local-in, behind prerouting's DNAT:
 *
 *   to a backend: judged by the backend, with each packet
 *   to the Service's own address still, because nobody translates it, or because
 *   it belongs to a connection of before, or answers one: judged by that address,
 *   which may be anybody's
 *
 * A packet whose flow was judged by the very address it goes to passes at once,
 * and so do packets of everybody else.
 */
SEC("netfilter") int look_after_dnat(struct bpf_nf_ctx *nf)
{
	const struct settings *cfg = get_config();
	struct translated t = {};
	struct header h = {};
	unsigned long status = 0, nfct;
	struct nf_conn *ct;
	struct flow *f;
	int pod;

	if (!cfg || read_header(nf->skb, nf->state->pf, &h))
		return NF_DROP;
	t.src = h.src;
	pod = find_pod(&t, nf->state);
	if (pod <= 0)
		return pod ? NF_DROP : NF_ACCEPT;
	if (t.shared) {
		t.a.rule = REASON_SHARED_ADDRESS;
		t.sport = h.sport;
		t.q.proto = h.proto;
		t.q.remote = h.dst;
		t.q.port = h.dport;
		t.len = nf->skb->len;
		return refuse(&t, cfg);
	}
	/* Later fragments follow a first one that was judged here, or have lost their trail. */
	if (h.frag == FRAG_LATER || !has_ports(h.proto) || !(t.ep->flags & EP_GOVERNED_EGRESS))
		return NF_ACCEPT;
	t.sport = h.sport;
	t.q.proto = h.proto;
	t.q.dir = EGRESS;
	t.q.translated = 1;
	t.q.remote = h.dst;
	t.q.port = h.dport;
	f = flow_of(&t, &h.dst, h.dport);
	if (f && !f->service && f->revision == cfg->revision)
		return NF_ACCEPT;
	nfct = nf->skb->_nfct;
	ct = (void *)(nfct & ~7UL);
	if (ct && (nfct & 7) >= IP_CT_IS_REPLY) {
		/* An answer through masquerading: the pod's hook knew the other end by another name. */
		if (!f)
			return NF_ACCEPT;
	} else if (ct) {
		if (bpf_core_read(&status, sizeof(status), &ct->status))
			return NF_DROP;
		if (status & IPS_DST_NAT && read_backend(&t.q, &ct->tuplehash[1].tuple))
			return NF_DROP;
	}
	/*
	 * An answer to who opened the flow, which the pod's hook has just judged. Not
	 * what DNAT leads to somebody who had opened one: that was not judged there.
	 */
	if (f && f->opener == INGRESS && !(status & IPS_DST_NAT))
		return NF_ACCEPT;
	judge(t.ep, &t.q, &t.a);
	if (t.a.rule & RULE_FORWARDED) {
		if (status & IPS_DST_NAT)
			note_backend(&t, &ct->tuplehash[0].tuple, 0);
		return NF_ACCEPT;
	}
	t.len = nf->skb->len;
	if (h.frag == FRAG_FIRST) {
		void *table = bpf_map_lookup_elem(&flows, &t.slot);
		struct flow_key k = {};

		k.raddr = h.dst;
		k.lport = h.frag_id >> 16;
		k.rport = h.frag_id & 0xffff;
		k.proto = is_v4(&k.raddr) ? h.proto : 0;
		k.local = own_index(t.ep, &h.src);
		k.kind = KIND_FRAG_EGRESS;
		if (table)
			bpf_map_delete_elem(table, &k);
	}
	if (status & IPS_DST_NAT)
		note_backend(&t, &ct->tuplehash[0].tuple, 1);
	return refuse(&t, cfg);
}

#endif
