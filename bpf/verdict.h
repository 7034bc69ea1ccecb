/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The verdict on a parsed IP packet: flows, fragments, ICMP errors, first packets. */
#ifndef POSTERN_VERDICT_H
#define POSTERN_VERDICT_H

#include "flow.h"

/*
 * What the packet path carries from one step to the next. It lives in map
 * memory: on the stack the verifier would follow each value of each field.
 * Both hooks run with bottom halves off, so a CPU has one packet at a time.
 */
struct ctx {
	struct pkt p;
	struct flow_key key;
	struct question q;
	struct answer a;
	__u64 now;
	__u32 slot;
	__u32 revision;
	__u32 dir;
	__u32 len;
	__u32 segs;
	__u32 post_dnat;
	__u32 local; /* index of the pod's address */
	__u32 csum_start, csum_offset; /* what is left to fill in; csum_start 0: nothing */
	struct flow fresh;
	/* of an ICMP error: the addresses and the first bytes of the packet inside */
	struct addr inner_src, inner_dst;
	__u8 inner[40];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ctx);
} scratch SEC(".maps");

static __always_inline const struct settings *get_config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&config, &zero);
}

__noinline int emit_verdict(const struct ctx *c, __u32 gen)
{
	struct event *e;

	if (!c)
		return 0;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		count(COUNT_EVENTS_LOST, 1);
		return 0;
	}
	e->time = c->now;
	e->created = 0;
	e->packets[0] = c->segs;
	e->bytes[0] = c->len;
	e->packets[1] = 0;
	e->bytes[1] = 0;
	e->laddr = c->dir == EGRESS ? c->p.src : c->p.dst;
	e->raddr = c->dir == EGRESS ? c->p.dst : c->p.src;
	e->lport = c->dir == EGRESS ? c->p.sport : c->p.dport;
	e->rport = c->dir == EGRESS ? c->p.dport : c->p.sport;
	e->gen = gen;
	e->revision = c->revision;
	e->rule = c->a.rule;
	e->staged = c->a.staged;
	e->type = EVENT_VERDICT;
	e->dir = c->dir;
	e->proto = c->p.proto;
	e->tcp_flags = c->p.tcp_flags;
	submit(e);
	return 0;
}

/* Drop, counted and told. rule without RULE_FORWARDED. */
static __always_inline int drop(struct ctx *c, const struct endpoint *ep, __u32 rule)
{
	c->a.rule = rule & RULE_MASK;
	count_rule(ep->gen, rule, c->segs, c->len);
	emit_verdict(c, ep->gen);
	return TCX_DROP;
}

static __always_inline int accept(struct __sk_buff *skb, const struct settings *cfg, __u32 dir)
{
	if (dir == EGRESS)
		skb->mark |= cfg->mark;
	return TCX_NEXT;
}

static __always_inline bool governed(const struct endpoint *ep, __u32 dir)
{
	return ep->flags & (dir == EGRESS ? EP_GOVERNED_EGRESS : EP_GOVERNED_INGRESS);
}

/* May a flow with this answer go on? */
static __always_inline bool permits(const struct ctx *c)
{
	if (c->a.rule & RULE_FORWARDED)
		return true;
	return c->a.rule & RULE_DEFERRED && c->post_dnat;
}

static __always_inline void question(struct ctx *c, const struct endpoint *ep, __u32 dir)
{
	c->q.dir = dir;
	/*
	 * A pod on the same bridge is reached without anybody who translates: a
	 * Service that claims its address is not looked at.
	 */
	c->q.translated = dir == EGRESS && ep->flags & EP_BRIDGED &&
			  bpf_map_lookup_elem(&endpoint_addrs, &c->key.raddr);
	c->q.proto = c->key.proto;
	c->q.remote = c->key.raddr;
	c->q.port = dir == EGRESS ? c->key.rport : c->key.lport;
}

static __always_inline void ask(struct ctx *c, const struct endpoint *ep, __u32 dir)
{
	question(c, ep, dir);
	judge(ep, &c->q, &c->a);
}

static __always_inline void touch(struct ctx *c, struct flow *f)
{
	__u32 answer = c->dir != f->opener;

	f->last_seen = c->now;
	f->packets[answer & 1] += c->segs;
	f->bytes[answer & 1] += c->len;
	/* A SYN and its answer are no connection yet: anybody can forge the one. */
	if (f->state == STATE_OPENING &&
	    (c->p.proto == IPPROTO_TCP ? !(c->p.tcp_flags & (TCP_SYN | TCP_RST)) && (answer || f->packets[1]) :
					 answer))
		f->state = STATE_OPEN;
	if (c->p.proto != IPPROTO_TCP)
		return;
	if (c->p.tcp_flags & TCP_RST) {
		f->fins |= RESET << (c->dir & 1);
		f->state = STATE_CLOSING;
	} else if (f->fins & RESET << (c->dir & 1)) {
		revive(f, c->dir);
	}
	if (c->p.tcp_flags & TCP_FIN) {
		f->fins |= 1 << (c->dir & 1);
		if ((f->fins & 3) == 3)
			f->state = STATE_CLOSING;
	}
}

/*
 * The current policy's word on a flow that an older revision admitted (I4).
 * Translation is made with a connection's first packet: a Service that appears
 * or goes later changes nothing about where this one's packets go.
 */
__noinline int judge_again(struct ctx *c, const struct endpoint *ep, struct flow *f)
{
	if (!c || !ep || !f)
		return 0;
	question(c, ep, f->opener);
	if (f->opener == EGRESS && !f->service)
		c->q.translated = 1;
	judge(ep, &c->q, &c->a);
	/*
	 * A Service says where new connections go. This one has its backend, ready or
	 * not, and that is what is judged, as long as the address is the Service's.
	 */
	if (c->a.service && f->backend_port) {
		c->q.remote = f->backend;
		c->q.port = f->backend_port;
		c->q.translated = 1;
		judge(ep, &c->q, &c->a);
		c->a.service = 1;
	}
	if (!permits(c))
		return 0;
	f->rule = c->a.rule;
	f->staged = c->a.staged;
	f->service = c->a.service;
	f->revision = c->revision;
	return 1;
}

/* Put a flow (or a fragment's trail) into the endpoint's table; 0 if it is full. */
__noinline int insert(struct ctx *c, __u32 frag_next)
{
	void *table;

	if (!c)
		return 0;
	table = bpf_map_lookup_elem(&flows, &c->slot);
	if (!table)
		return 0;
	__builtin_memset(&c->fresh, 0, sizeof(c->fresh));
	c->fresh.created = c->fresh.last_seen = c->now;
	c->fresh.packets[0] = c->segs;
	c->fresh.bytes[0] = c->len;
	c->fresh.revision = c->revision;
	c->fresh.rule = c->a.rule;
	c->fresh.staged = c->a.staged;
	c->fresh.opener = c->dir;
	c->fresh.service = c->a.service;
	c->fresh.self = c->a.rule == (RULE_FORWARDED | REASON_SELF);
	c->fresh.frag_next = frag_next;
	if (!bpf_map_update_elem(table, &c->key, &c->fresh, BPF_ANY))
		return 1;
	/* Full: make room, at most once in 100 ms, whoever is or is not alive up there. */
	{
		/* By direction: who floods the pod must not use up the pod's own turn. */
		__u32 at = c->slot * 2 + (c->dir & 1);
		__u64 *last = bpf_map_lookup_elem(&collected, &at);

		if (last && c->now - *last > 100000000ULL) {
			*last = c->now;
			if (collect(c->slot, c->now, c->dir == EGRESS ? 2 : 1) &&
			    !bpf_map_update_elem(table, &c->key, &c->fresh, BPF_ANY))
				return 1;
		}
	}
	count(COUNT_FLOWS_FULL, 1);
	return 0;
}

static __always_inline void set_key(struct ctx *c, __u32 kind)
{
	if (c->dir == EGRESS) {
		c->key.raddr = c->p.dst;
		c->key.lport = c->p.sport;
		c->key.rport = c->p.dport;
	} else {
		c->key.raddr = c->p.src;
		c->key.lport = c->p.dport;
		c->key.rport = c->p.sport;
	}
	c->key.proto = c->p.proto;
	c->key.kind = kind;
	c->key.local = c->local;
	c->key.pad = 0;
}

/*
 * The key of a datagram's fragments: of IPv4 by protocol, of IPv6 not, where
 * later ones may name another header (RFC 791, RFC 8200 4.5).
 */
static __always_inline void set_trail(struct ctx *c)
{
	set_key(c, c->dir == EGRESS ? KIND_FRAG_EGRESS : KIND_FRAG_INGRESS);
	c->key.lport = c->p.frag_id >> 16;
	c->key.rport = c->p.frag_id & 0xffff;
	if (!is_v4(&c->key.raddr))
		c->key.proto = 0;
}

/*
 * Fragments are let through only behind their accepted first one, in order and
 * without overlap: Linux sends them so, and what a reassembler would make of
 * anything else is not knowable here.
 */
__noinline int later_fragment(struct ctx *c)
{
	const struct settings *cfg = get_config();
	struct flow *f;
	void *table;

	if (!c || !cfg)
		return REASON_FRAGMENT;
	table = bpf_map_lookup_elem(&flows, &c->slot);
	if (!table)
		return REASON_FRAGMENT;
	set_trail(c);
	f = bpf_map_lookup_elem(table, &c->key);
	if (!f)
		return REASON_FRAGMENT;
	if (expired(cfg, &c->key, f, c->now) || f->revision != c->revision ||
	    f->frag_next != c->p.frag_off) {
		bpf_map_delete_elem(table, &c->key);
		return REASON_FRAGMENT;
	}
	f->frag_next = c->p.frag_off + c->p.frag_len;
	f->last_seen = c->now;
	if (!c->p.more_frags)
		bpf_map_delete_elem(table, &c->key);
	return 0;
}

__noinline int first_fragment(struct ctx *c)
{
	const struct settings *cfg = get_config();
	struct flow *f;
	void *table;

	if (!c || !cfg)
		return REASON_FRAGMENT;
	table = bpf_map_lookup_elem(&flows, &c->slot);
	if (!table)
		return REASON_FRAGMENT;
	set_trail(c);
	f = bpf_map_lookup_elem(table, &c->key);
	if (f && !expired(cfg, &c->key, f, c->now)) {
		bpf_map_delete_elem(table, &c->key);
		return REASON_FRAGMENT;
	}
	return insert(c, c->p.frag_len) ? 0 : REASON_TABLE_FULL;
}

/* An ICMP error passes for a live flow whose packet it carries (RFC 792, RFC 4443). */
__noinline int icmp_error(struct __sk_buff *skb, struct ctx *c, const struct endpoint *ep)
{
	const struct settings *cfg = get_config();
	__u32 off;
	struct flow *f;
	void *table;
	__u8 *h, proto;

	if (!c || !ep || !cfg)
		return REASON_ICMP_ERROR;
	table = bpf_map_lookup_elem(&flows, &c->slot);
	if (!table)
		return REASON_ICMP_ERROR;
	h = c->inner;
	off = c->p.l4 + 8;
	if (c->p.frag || (c->p.proto == IPPROTO_ICMP && c->p.icmp_type == 5))
		return REASON_ICMP_ERROR;
	if (c->p.proto == IPPROTO_ICMP) {
		struct iphdr *ip = (void *)h;

		/* RFC 1812 4.3.2.3: 576 bytes at most. */
		if (c->p.end - ETH_HLEN > 576 || off + sizeof(*ip) > c->p.end ||
		    bpf_skb_load_bytes(skb, off, ip, sizeof(*ip)) < 0)
			return REASON_ICMP_ERROR;
		if (ip->ver_ihl >> 4 != 4 || (ip->ver_ihl & 15) < 5 ||
		    bpf_ntohs(ip->frag_off) & 0x1fff)
			return REASON_ICMP_ERROR;
		set_v4(&c->inner_src, ip->saddr);
		set_v4(&c->inner_dst, ip->daddr);
		proto = ip->protocol;
		off += (ip->ver_ihl & 15) * 4;
	} else {
		/* RFC 4443 2.4(c): 1280 bytes at most. Extension headers inside are not followed. */
		if (c->p.end - ETH_HLEN > 1280 || off + 40 > c->p.end ||
		    bpf_skb_load_bytes(skb, off, h, 40) < 0)
			return REASON_ICMP_ERROR;
		__builtin_memcpy(&c->inner_src, h + 8, 16);
		__builtin_memcpy(&c->inner_dst, h + 24, 16);
		proto = h[6];
		off += 40;
	}
	if (off + 8 > c->p.end || bpf_skb_load_bytes(skb, off, h, 8) < 0)
		return REASON_ICMP_ERROR;
	__builtin_memset(&c->key, 0, sizeof(c->key));
	c->key.proto = proto;
	if (c->dir == EGRESS) {
		/* The pod complains to the sender of what it received. */
		if (!addr_equal(&c->p.dst, &c->inner_src))
			return REASON_ICMP_ERROR;
		c->key.local = own_index(ep, &c->inner_dst);
		c->key.raddr = c->inner_src;
	} else {
		if (!addr_equal(&c->p.dst, &c->inner_src))
			return REASON_ICMP_ERROR;
		c->key.local = own_index(ep, &c->inner_src);
		c->key.raddr = c->inner_dst;
	}
	if (has_ports(proto)) {
		__u16 sp = (__u16)h[0] << 8 | h[1], dp = (__u16)h[2] << 8 | h[3];

		c->key.lport = c->dir == EGRESS ? dp : sp;
		c->key.rport = c->dir == EGRESS ? sp : dp;
	} else if (proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6) {
		bool request = h[0] == (proto == IPPROTO_ICMP ? 8 : 128);

		if (!request && h[0] != (proto == IPPROTO_ICMP ? 0 : 129))
			return REASON_ICMP_ERROR;
		c->key.lport = c->key.rport = (__u16)h[4] << 8 | h[5];
		/* Inside is what the other side of this packet's direction sent. */
		c->key.kind = (c->dir == INGRESS) == request ? KIND_ECHO_EGRESS : KIND_ECHO_INGRESS;
	}
	f = bpf_map_lookup_elem(table, &c->key);
	if (!f || expired(cfg, &c->key, f, c->now))
		return REASON_ICMP_ERROR;
	if (f->revision != c->revision && !judge_again(c, ep, f))
		return REASON_ICMP_ERROR;
	return 0;
}

/*
 * IP packet, parsed and from the right source. Returns 0 to accept, else the
 * rule or reason that drops it.
 */
__noinline int flow_verdict(struct __sk_buff *skb, struct ctx *c, const struct endpoint *ep)
{
	const struct settings *cfg = get_config();
	bool tcp, syn, echo = false, reply = false;
	struct flow *f;
	__u32 kind = KIND_FLOW;
	void *table;
	int reason;

	if (!c || !ep || !cfg)
		return REASON_MALFORMED;
	if (c->p.frag == FRAG_LATER)
		return later_fragment(c);
	if (c->p.icmp_error)
		return icmp_error(skb, c, ep);
	tcp = c->p.proto == IPPROTO_TCP;
	syn = tcp && (c->p.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	if (c->p.proto == IPPROTO_ICMP) {
		echo = c->p.icmp_type == 8 || c->p.icmp_type == 0;
		reply = c->p.icmp_type == 0;
	} else if (c->p.proto == IPPROTO_ICMPV6) {
		echo = c->p.icmp_type == 128 || c->p.icmp_type == 129;
		reply = c->p.icmp_type == 129;
	}
	if (echo)
		kind = (c->dir == EGRESS) != reply ? KIND_ECHO_EGRESS : KIND_ECHO_INGRESS;
	set_key(c, kind);
	table = bpf_map_lookup_elem(&flows, &c->slot);
	if (!table)
		return REASON_NO_ENDPOINT;
	f = bpf_map_lookup_elem(table, &c->key);
	if (f && expired(cfg, &c->key, f, c->now)) {
		emit_close(ep, &c->key, f, c->now);
		bpf_map_delete_elem(table, &c->key);
		f = 0;
	}
	if (f && !syn) {
		if (f->revision != c->revision && !judge_again(c, ep, f)) {
			emit_close(ep, &c->key, f, c->now);
			bpf_map_delete_elem(table, &c->key);
			return c->a.rule & RULE_MASK ?: REASON_NO_RULESET;
		}
		reason = c->p.frag ? first_fragment(c) : 0;
		if (!reason)
			touch(c, f);
		return reason;
	}
	if (reply || (tcp && !syn))
		return REASON_NO_FLOW;

	/* A first packet: today's policy decides, whatever is in the table. */
	ask(c, ep, c->dir);
	if (!permits(c)) {
		if (f && f->opener == c->dir) {
			emit_close(ep, &c->key, f, c->now);
			bpf_map_delete_elem(table, &c->key);
		}
		return c->a.rule & RULE_MASK ?: REASON_NO_RULESET;
	}
	if (f && f->state != STATE_CLOSING) {
		/* A SYN sent again, or from both sides at once. */
		if (f->opener == c->dir) {
			f->rule = c->a.rule;
			f->staged = c->a.staged;
			f->service = c->a.service;
			f->revision = c->revision;
		}
		reason = c->p.frag ? first_fragment(c) : 0;
		if (!reason)
			touch(c, f);
		return reason;
	}
	if (f)
		emit_close(ep, &c->key, f, c->now);
	/* ICMP without an identifier has no flow; each is judged. */
	if ((echo || (c->p.proto != IPPROTO_ICMP && c->p.proto != IPPROTO_ICMPV6)) && !insert(c, 0))
		return REASON_TABLE_FULL;
	/* One frame, one verdict: told when nothing can drop it any more. */
	reason = c->p.frag ? first_fragment(c) : 0;
	if (reason)
		return reason;
	count_accept(c->slot, c->a.rule, c->segs, c->len);
	emit_verdict(c, ep->gen);
	return 0;
}

#endif
