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
#include "verdict.h"
#include "neigh.h"
#include "dnat.h"

/* net/core/filter.c: the sk_buff behind a tc program's context. */
extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym;

#define CHECKSUM_PARTIAL 3 /* include/linux/skbuff.h */

/*
 * Where somebody will write a checksum, from the frame's start (low half), and
 * how far behind it the place is; 0: nowhere. An AF_PACKET socket chooses both
 * (PACKET_VNET_HDR), and the device writes after every verdict.
 */
static __always_inline __u32 pending_checksum(struct __sk_buff *skb)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);

	if (BPF_CORE_READ_BITFIELD(k, ip_summed) != CHECKSUM_PARTIAL)
		return 0;
	return (__u32)k->csum_offset << 16 |
	       (__u16)(k->csum_start - (__u32)((__u64)k->data - (__u64)k->head));
}

/* Does the checksum belong to what was parsed, or lie behind what was judged? */
static __always_inline bool checksum_in_place(const struct ctx *c)
{
	__u32 l4 = c->p.l4, offset = c->csum_offset;

	if (c->csum_start < l4)
		return false;
	if (c->p.frag == FRAG_LATER)
		return true;
	switch (c->p.proto) {
	case IPPROTO_TCP:
		return c->csum_start == l4 && offset == 16;
	case IPPROTO_UDP: /* or of a packet inside, behind the header */
		return c->csum_start == l4 ? offset == 6 : c->csum_start >= l4 + 8;
	case IPPROTO_SCTP:
		return c->csum_start == l4 && offset == 8;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return c->csum_start == l4 && offset == 2;
	}
	return true;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/*
 * The common case in one breath: an unfragmented TCP or UDP packet without
 * options, of a live flow that the current revision admits. Whatever is not
 * exactly that takes the long way. Returns true if the packet is admitted.
 */
static __always_inline bool established(struct __sk_buff *skb, const struct settings *cfg,
					const struct endpoint *ep, __u32 slot, __u32 revision,
					__u32 dir, __be16 proto, __u32 csum)
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
	if (csum && csum != ((__u32)(k.proto == IPPROTO_TCP ? 16 : 6) << 16 | (len - l4len)))
		return false;
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
	if (!f || f->revision != revision || f->self)
		return false;
	now = bpf_ktime_get_coarse_ns();
	if (expired(cfg, &k, f, now))
		return false;
	f->last_seen = now;
	answer = dir != f->opener;
	f->packets[answer] += skb->gso_segs ?: 1;
	f->bytes[answer] += len;
	if (f->state == STATE_OPENING && (answer || f->packets[1]))
		f->state = STATE_OPEN;
	if (f->fins & RESET << dir)
		revive(f, dir);
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
		reason = dir != EGRESS ? 0 : c->csum_start ? REASON_ARP : arp_from_pod(skb, ep);
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
		/* Bytes behind the packet are not judged; a bridge carries them on. 60: padding. */
		if (!reason && ((c->csum_start && !checksum_in_place(c)) ||
				(c->len > c->p.end && c->len > 60)))
			reason = REASON_MALFORMED;
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
		judged(&c->q.remote, &c->p.dst);
		if (!reason && is_martian(&c->q.remote))
			return drop(c, ep, REASON_MARTIAN);
	} else {
		c->local = own_index(ep, &c->p.dst);
		/* RFC 4861: hop limit 255 proves that it is from this link; MLD has 1. */
		if (c->p.ndp && !reason &&
		    (c->p.hop_limit == 255 || (c->p.hop_limit == 1 && is_link_local(&c->p.src))) &&
		    !c->p.frag && neighbour_alone(skb, &c->p))
			return accept(skb, cfg, dir);
		/*
		 * Nothing may open a flow whose answers go to where no packet may go.
		 * The pod's own packets come back through a Service, and have the mark.
		 */
		if (!reason && (is_martian(&c->p.src) ||
				(own_addr(ep, &c->p.src) && !(skb->mark & cfg->mark))))
			reason = REASON_MARTIAN;
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
	__u32 ifindex = skb->ifindex, zero = 0, want, slot, revision, csum = 0, *v;
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
	if (dir == EGRESS) {
		skb->mark &= ~cfg->mark;
		csum = pending_checksum(skb);
	}

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
		    established(skb, cfg, ep, slot, revision, dir, proto, csum))
			return accept(skb, cfg, dir);
	}
	c = bpf_map_lookup_elem(&scratch, &zero);
	if (!c)
		return TCX_DROP;
	c->slot = slot;
	c->revision = revision;
	c->csum_start = csum & 0xffff;
	c->csum_offset = csum >> 16;
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

/* Returns the number of flows removed. */
SEC("syscall") int collect_flows(__u32 *slot)
{
	return collect(*slot, bpf_ktime_get_ns(), 0);
}
