// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Entry points.
 *
 *   from_pod   tcx ingress of the pod's host-side interface: what the pod sends
 *   to_pod     tcx egress of the same interface: what the pod receives
 *   look_after_dnat  netfilter forward and local-in: a Service's chosen backend
 *   collect_flows    syscall: garbage collection, started by the agent
 *
 * tcx return codes: TCX_NEXT on accept, so that the CNI's own programs still
 * run; TCX_DROP on deny. Nothing else is ever returned.
 */
#include "flow.h"
#include "neigh.h"
#include <bpf_core_read.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

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

static __always_inline void ask(struct ctx *c, const struct endpoint *ep, __u32 dir)
{
	c->q.dir = dir;
	c->q.translated = 0;
	c->q.proto = c->key.proto;
	c->q.remote = c->key.raddr;
	c->q.port = dir == EGRESS ? c->key.rport : c->key.lport;
	judge(ep, &c->q, &c->a);
}

static __always_inline void touch(struct ctx *c, struct flow *f)
{
	__u32 answer = c->dir != f->opener;

	f->last_seen = c->now;
	f->packets[answer & 1] += c->segs;
	f->bytes[answer & 1] += c->len;
	if (answer && f->state == STATE_OPENING)
		f->state = STATE_OPEN;
	if (c->p.tcp_flags & (TCP_FIN | TCP_RST) && c->p.proto == IPPROTO_TCP) {
		if (c->p.tcp_flags & TCP_RST)
			f->state = STATE_CLOSING;
		f->fins |= 1 << (c->dir & 1);
		if (f->fins == 3)
			f->state = STATE_CLOSING;
	}
}

/* The current policy's word on a flow that an older revision admitted (I4). */
__noinline int judge_again(struct ctx *c, const struct endpoint *ep, struct flow *f)
{
	if (!c || !ep || !f)
		return 0;
	ask(c, ep, f->opener);
	if (!permits(c))
		return 0;
	f->rule = c->a.rule;
	f->staged = c->a.staged;
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
	c->fresh.frag_next = frag_next;
	if (!bpf_map_update_elem(table, &c->key, &c->fresh, BPF_ANY))
		return 1;
	/* Full: make room, at most once in 100 ms, whoever is or is not alive up there. */
	{
		__u64 *last = bpf_map_lookup_elem(&collected, &c->slot);

		if (last && c->now - *last > 100000000ULL) {
			*last = c->now;
			if (collect(c->slot, c->now, 1) &&
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
	set_key(c, c->dir == EGRESS ? KIND_FRAG_EGRESS : KIND_FRAG_INGRESS);
	c->key.lport = c->p.frag_id >> 16;
	c->key.rport = c->p.frag_id & 0xffff;
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
	set_key(c, c->dir == EGRESS ? KIND_FRAG_EGRESS : KIND_FRAG_INGRESS);
	c->key.lport = c->p.frag_id >> 16;
	c->key.rport = c->p.frag_id & 0xffff;
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
		touch(c, f);
		goto admitted;
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
			f->revision = c->revision;
		}
		touch(c, f);
		goto admitted;
	}
	count_accept(c->slot, c->a.rule, c->segs, c->len);
	if ((c->p.proto == IPPROTO_ICMP || c->p.proto == IPPROTO_ICMPV6) && !echo) {
		emit_verdict(c, ep->gen);
		goto admitted;
	}
	if (f)
		emit_close(ep, &c->key, f, c->now);
	if (!insert(c, 0))
		return REASON_TABLE_FULL;
	emit_verdict(c, ep->gen);
admitted:
	if (c->p.frag == FRAG_FIRST)
		return first_fragment(c);
	return 0;
}

/*
 * The common case in one breath: an unfragmented TCP or UDP packet without
 * options, of a live flow that the current revision admits. Whatever is not
 * exactly that takes the long way. Returns true if the packet is admitted.
 */
static __always_inline bool established(struct __sk_buff *skb, const struct settings *cfg,
					const struct endpoint *ep, __u32 slot, __u32 revision,
					__u32 dir, __be16 proto)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct flow_key k = {};
	struct addr local;
	struct flow *f;
	__u32 ports, len = skb->len, l4len;
	__u8 *l4;
	__u64 now;
	void *table;
	bool answer;

	if (proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + ETH_HLEN;

		l4 = (__u8 *)(ip + 1);
		if ((void *)(l4 + 20) > data_end || ip->ver_ihl != 0x45 ||
		    ip->frag_off & bpf_htons(0x3fff) || bpf_ntohs(ip->tot_len) != len - ETH_HLEN)
			return false;
		k.proto = ip->protocol;
		set_v4(&local, dir == EGRESS ? ip->saddr : ip->daddr);
		set_v4(&k.raddr, dir == EGRESS ? ip->daddr : ip->saddr);
		l4len = len - ETH_HLEN - 20;
	} else {
		struct ipv6hdr *ip = data + ETH_HLEN;

		l4 = (__u8 *)(ip + 1);
		if ((void *)(l4 + 20) > data_end || ip->ver_class >> 4 != 6 ||
		    bpf_ntohs(ip->payload_len) != len - ETH_HLEN - 40)
			return false;
		k.proto = ip->nexthdr;
		__builtin_memcpy(&local, dir == EGRESS ? ip->saddr : ip->daddr, 16);
		__builtin_memcpy(&k.raddr, dir == EGRESS ? ip->daddr : ip->saddr, 16);
		if (is_v4(&local) || is_v4(&k.raddr))
			return false;
		l4len = len - ETH_HLEN - 40;
	}
	if (k.proto == IPPROTO_TCP) {
		/* Neither opening nor closing. */
		if ((l4[13] & (TCP_ACK | TCP_SYN | TCP_FIN | TCP_RST)) != TCP_ACK ||
		    l4[12] >> 4 < 5 || (__u32)(l4[12] >> 4) * 4 > l4len)
			return false;
	} else if (k.proto == IPPROTO_UDP) {
		__u32 ulen = (__u32)l4[4] << 8 | l4[5];

		if (ulen != l4len || skb->gso_segs)
			return false;
	} else {
		return false;
	}
	ports = *(__u32 *)l4; /* source, destination in network order */
	k.lport = bpf_ntohs(dir == EGRESS ? ports & 0xffff : ports >> 16);
	k.rport = bpf_ntohs(dir == EGRESS ? ports >> 16 : ports & 0xffff);
	k.local = own_index(ep, &local);
	if (k.local == LOCAL_OTHER)
		return false;
	table = bpf_map_lookup_elem(&flows, &slot);
	f = table ? bpf_map_lookup_elem(table, &k) : 0;
	if (!f || f->revision != revision)
		return false;
	now = bpf_ktime_get_coarse_ns();
	if (expired(cfg, &k, f, now))
		return false;
	f->last_seen = now;
	answer = dir != f->opener;
	f->packets[answer] += skb->gso_segs ?: 1;
	f->bytes[answer] += len;
	if (answer && f->state == STATE_OPENING)
		f->state = STATE_OPEN;
	return true;
}

/* Loopback and unspecified destinations are on no wire (RFC 1122 3.2.1.3, RFC 4291 2.5). */
static __always_inline bool is_martian(const struct addr *a)
{
	if (is_v4(a))
		return a->b[12] == 127 || a->b[12] == 0;
	return !a->d[0] && !a->w[2] && !(a->w[3] & bpf_htonl(~1));
}

static __always_inline bool is_unicast(const struct addr *a)
{
	return is_v4(a) ? a->b[12] < 224 : a->b[0] != 0xff;
}

/* Everything else. The frame's first 54 bytes, or all of it, are linear. */
static __noinline int examine(struct __sk_buff *skb, const struct settings *cfg,
			      const struct endpoint *ep, struct ctx *c, __u32 dir)
{
	__be16 proto = skb->protocol;
	int reason;

	__builtin_memset(&c->p, 0, sizeof(c->p));
	c->dir = dir;
	c->len = skb->len;
	c->segs = skb->gso_segs ?: 1;
	c->now = bpf_ktime_get_coarse_ns();
	c->post_dnat = cfg->post_dnat;
	c->a.rule = 0;
	c->a.staged = 0;

	/* A tag hides what the kernel will act on; a priority tag is still routed. */
	if (skb->vlan_present || proto == bpf_htons(ETH_P_8021Q) ||
	    proto == bpf_htons(ETH_P_8021AD) || proto == bpf_htons(ETH_P_QINQ1))
		return drop(c, ep, REASON_VLAN);
	{
		struct ethhdr *eth = (void *)(long)skb->data;

		if ((void *)(eth + 1) > (void *)(long)skb->data_end)
			return drop(c, ep, REASON_MALFORMED);
		if (dir == EGRESS && !mac_equal(eth->h_source, ep->mac))
			return drop(c, ep, REASON_SOURCE_MAC);
		/* skb->protocol is what the kernel dispatches on; both must say the same. */
		if (eth->h_proto != proto) {
			reason = REASON_ETHERTYPE;
			goto not_understood;
		}
	}

	if (proto == bpf_htons(ETH_P_ARP)) {
		reason = dir == EGRESS ? arp_from_pod(skb, ep) : 0;
		return reason ? drop(c, ep, reason) : accept(skb, cfg, dir);
	}
	if (proto == bpf_htons(ETH_P_IP)) {
		reason = parse_v4(skb, &c->p, ep->flags & EP_IP_OPTIONS || !governed(ep, dir));
	} else if (proto == bpf_htons(ETH_P_IPV6)) {
		reason = parse_v6(skb, &c->p);
	} else {
		reason = REASON_ETHERTYPE;
		goto not_understood;
	}

	if (dir == EGRESS) {
		if (c->p.ndp) {
			if (!reason)
				reason = ndp_from_pod(skb, ep, &c->p);
			return reason ? drop(c, ep, reason) : accept(skb, cfg, dir);
		}
		c->local = own_index(ep, &c->p.src);
		/* A link-local source reaches the link only; policy judges where to. */
		if (c->local == LOCAL_OTHER && !own_link_local(ep, &c->p.src))
			return drop(c, ep, REASON_SOURCE);
		if (skb->pkt_type == PACKET_OTHERHOST && !(ep->flags & EP_BRIDGED))
			return drop(c, ep, REASON_DEST_MAC);
		/* One address by IP and everybody by Ethernet: a bridge would flood it. */
		if ((skb->pkt_type == PACKET_BROADCAST || skb->pkt_type == PACKET_MULTICAST) &&
		    !reason && is_unicast(&c->p.dst) &&
		    (!(ep->flags & EP_BRIDGED) || governed(ep, EGRESS)))
			return drop(c, ep, REASON_DEST_MAC);
		if (!reason && is_martian(&c->p.dst))
			return drop(c, ep, REASON_MARTIAN);
	} else {
		c->local = own_index(ep, &c->p.dst);
		/* RFC 4861: hop limit 255 proves that it is from this link; MLD has 1. */
		if (c->p.ndp && !reason &&
		    (c->p.hop_limit == 255 || (c->p.hop_limit == 1 && is_link_local(&c->p.src))))
			return accept(skb, cfg, dir);
		/*
		 * The sender was judged by the packet's destination. On a bridge the
		 * frame's may be another: this pod must not get what is not for it.
		 */
		if (ep->flags & EP_BRIDGED && !reason && c->local == LOCAL_OTHER &&
		    is_unicast(&c->p.dst) && !is_link_local(&c->p.dst))
			return drop(c, ep, REASON_DEST_MAC);
	}
	if (reason)
		goto not_understood;

	reason = flow_verdict(skb, c, ep);
	if (!reason)
		return accept(skb, cfg, dir);
	/* Without a policy, a missing or full state table is no ground to drop. */
	if (!governed(ep, dir) && (reason == REASON_NO_FLOW || reason == REASON_TABLE_FULL ||
				   reason == REASON_FRAGMENT || reason == REASON_ICMP_ERROR))
		return accept(skb, cfg, dir);
	return drop(c, ep, reason);

not_understood:
	/* Dropped if the pod is governed (I1). */
	return governed(ep, dir) ? drop(c, ep, reason) : accept(skb, cfg, dir);
}

static __always_inline int handle(struct __sk_buff *skb, __u32 dir)
{
	__u32 ifindex = skb->ifindex, zero = 0, want, slot, revision, *v;
	const struct settings *cfg = get_config();
	const struct endpoint *ep;
	struct ctx *c;
	__be16 proto;

	v = bpf_map_lookup_elem(&endpoint_slots, &ifindex);
	if (!cfg || !v)
		return TCX_DROP;
	slot = *v;
	/* Before anything else is read: a flow must not get a newer revision than its verdict. */
	revision = *(volatile const __u32 *)&cfg->revision;
	ep = endpoint_of(slot);
	/* The slot may be changing hands: another interface's entry is not ours. */
	if (!ep || ep->ifindex != ifindex)
		return TCX_DROP;
	if (ep->flags & EP_DENY_ALL) {
		count_rule(ep->gen, REASON_QUARANTINE, skb->gso_segs ?: 1, skb->len);
		return TCX_DROP;
	}
	if (dir == EGRESS)
		skb->mark &= ~cfg->mark;

	/*
	 * All fixed headers into the linear part: an AF_PACKET ring sends 14 bytes
	 * linear. Not one byte more: bulk TCP has its payload in fragments, and to
	 * pull from those costs more than everything else here.
	 */
	want = ETH_HLEN + 20 + (skb->protocol == bpf_htons(ETH_P_IPV6) ? 40 : 20);
	if (skb->len < want)
		want = skb->len;
	if ((long)skb->data + want > (long)skb->data_end && bpf_skb_pull_data(skb, want) < 0)
		return TCX_DROP;

	proto = skb->protocol;
	if (!skb->vlan_present && (proto == bpf_htons(ETH_P_IP) || proto == bpf_htons(ETH_P_IPV6))) {
		struct ethhdr *eth = (void *)(long)skb->data;

		if ((void *)(eth + 1) <= (void *)(long)skb->data_end && eth->h_proto == proto &&
		    (dir == INGRESS || (mac_equal(eth->h_source, ep->mac) &&
					(skb->pkt_type == PACKET_HOST ||
					 (skb->pkt_type == PACKET_OTHERHOST && ep->flags & EP_BRIDGED)))) &&
		    established(skb, cfg, ep, slot, revision, dir, proto))
			return accept(skb, cfg, dir);
	}
	c = bpf_map_lookup_elem(&scratch, &zero);
	if (!c)
		return TCX_DROP;
	c->slot = slot;
	c->revision = revision;
	return examine(skb, cfg, ep, c, dir);
}

SEC("tcx/ingress") int from_pod(struct __sk_buff *skb)
{
	return handle(skb, EGRESS);
}

SEC("tcx/egress") int to_pod(struct __sk_buff *skb)
{
	return handle(skb, INGRESS);
}

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

/* A refused translation; the remote end is the backend that was chosen. */
struct translated {
	const struct endpoint *ep;
	struct addr src;
	__u16 sport;
	__u32 len, revision;
	struct question q;
	struct answer a;
};

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
	unsigned long status = 0;
	const struct settings *cfg;
	struct translated t = {};
	__u32 zero = 0, which, *v, slot;
	__be16 port = 0;

	if (!ct || (nfct & 7) >= IP_CT_IS_REPLY)
		return NF_ACCEPT;
	bpf_core_read(&status, sizeof(status), &ct->status);
	/* Only a connection's first packets can be translated anew. */
	if (!(status & IPS_DST_NAT) && (nfct & 7) != IP_CT_NEW)
		return NF_ACCEPT;
	cfg = bpf_map_lookup_elem(&config, &zero);
	orig = &ct->tuplehash[0].tuple;
	back = &ct->tuplehash[1].tuple;
	if (!cfg || read_tuple_addr(&t.src, orig) || read_tuple_addr(&t.q.remote, back))
		return NF_DROP;
	v = bpf_map_lookup_elem(&endpoint_addrs, &t.src);
	if (!v)
		return NF_ACCEPT; /* not from a pod of ours */
	slot = *v;
	v = bpf_map_lookup_elem(&active, &slot);
	if (!v)
		return NF_DROP;
	which = *(volatile __u32 *)v;
	t.ep = bpf_map_lookup_elem(&endpoints, &which);
	if (!t.ep || t.ep->flags & EP_DENY_ALL)
		return NF_DROP;
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
	t.revision = cfg->revision;
	count_rule(t.ep->gen, t.a.rule, 1, t.len);
	emit_translated(&t);
	return NF_DROP;
}

/* Returns the number of flows removed. */
SEC("syscall") int collect_flows(__u32 *slot)
{
	return collect(*slot, bpf_ktime_get_ns(), 0);
}
