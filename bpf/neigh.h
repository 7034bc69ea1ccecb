/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ARP and neighbour discovery are not subject to policy (a pod without them
 * has no network) and so must carry nothing and claim nothing but the pod's own.
 */
#ifndef POSTERN_NEIGH_H
#define POSTERN_NEIGH_H

#include "parse.h"

static __always_inline bool own_addr(const struct endpoint *ep, const struct addr *a)
{
	return own_index(ep, a) != LOCAL_OTHER;
}

static __always_inline bool mac_equal(const __u8 *a, const __u8 *b)
{
	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]) |
		 (a[5] ^ b[5]));
}

static __always_inline bool is_link_local(const struct addr *a)
{
	return a->b[0] == 0xfe && (a->b[1] & 0xc0) == 0x80;
}

static __always_inline bool is_unspecified(const struct addr *a)
{
	return a->d[0] == 0 && a->d[1] == 0;
}

/*
 * The link-local address that the kernel makes of the pod's MAC (RFC 4291
 * appendix A). Any other is not the pod's to claim, also one that the pod has
 * made up for itself: it needs none for its own addresses to work.
 */
static __always_inline bool own_link_local(const struct endpoint *ep, const struct addr *a)
{
	return is_link_local(a) && a->b[0] == 0xfe && a->b[1] == 0x80 && !(a->w[0] & bpf_htonl(0xffff)) &&
	       !a->w[1] && a->b[8] == (ep->mac[0] ^ 2) && a->b[9] == ep->mac[1] &&
	       a->b[10] == ep->mac[2] && a->b[11] == 0xff && a->b[12] == 0xfe &&
	       a->b[13] == ep->mac[3] && a->b[14] == ep->mac[4] && a->b[15] == ep->mac[5];
}

/* ff02::/16, link scope. */
static __always_inline bool is_link_multicast(const struct addr *a)
{
	return a->b[0] == 0xff && (a->b[1] & 0x0f) == 2;
}

/* An ARP frame from the pod: sender must be the pod (or a probe from 0.0.0.0, RFC 5227). */
__noinline int arp_from_pod(struct __sk_buff *skb, const struct endpoint *ep)
{
	struct arphdr_eth arp;
	struct addr sender;
	__u32 spa, i;

	if (!ep)
		return REASON_ARP;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)) < 0)
		return REASON_ARP;
	if (arp.hrd != bpf_htons(1) || arp.pro != bpf_htons(ETH_P_IP) || arp.hln != 6 || arp.pln != 4)
		return REASON_ARP;
	if (arp.op != bpf_htons(1) && arp.op != bpf_htons(2))
		return REASON_ARP;
	/* Anything behind the 28 bytes is padding of a minimum frame, and zero, at most. */
	if (skb->len > 60)
		return REASON_ARP;
	for (i = 0; i < 18; i++) {
		__u8 pad;

		if (ETH_HLEN + sizeof(arp) + i >= skb->len)
			break;
		if (bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(arp) + i, &pad, 1) < 0 || pad)
			return REASON_ARP;
	}
	if (!mac_equal(arp.sha, ep->mac))
		return REASON_ARP;
	__builtin_memcpy(&spa, arp.spa, 4);
	if (!spa)
		return 0;
	set_v4(&sender, spa);
	return own_addr(ep, &sender) ? 0 : REASON_ARP;
}

/*
 * MLD from the pod: reports only (queries are a router's), hop limit 1, link
 * scope, and nothing in them but groups (RFC 2710, RFC 3810).
 */
__noinline int mld_from_pod(struct __sk_buff *skb, const struct pkt *p)
{
	__u32 have, i;
	__u8 h[8];
	struct addr group;

	if (!p)
		return REASON_NDP;
	have = p->end - p->l4;
	if (p->hop_limit != 1 || !is_link_multicast(&p->dst) || p->icmp_type == 130)
		return REASON_NDP;
	if (p->icmp_type != 143) {
		/* A report or done of version 1 holds one group. */
		if (have != 24 || bpf_skb_load_bytes(skb, p->l4 + 8, &group, 16) < 0)
			return REASON_NDP;
		return group.b[0] == 0xff ? 0 : REASON_NDP;
	}
	if (bpf_skb_load_bytes(skb, p->l4, h, 8) < 0 || h[6] || h[7] > 16 ||
	    have != 8 + 20 * (__u32)h[7])
		return REASON_NDP;
	for (i = 0; i < 16; i++) {
		__u8 r[4];

		if (8 + 20 * i >= have)
			break;
		/* Record type, length of auxiliary data, number of sources. */
		if (bpf_skb_load_bytes(skb, p->l4 + 8 + 20 * i, r, 4) < 0 || r[1] || r[2] || r[3] ||
		    bpf_skb_load_bytes(skb, p->l4 + 12 + 20 * i, &group, 16) < 0 ||
		    group.b[0] != 0xff)
			return REASON_NDP;
	}
	return 0;
}

/*
 * Neighbour discovery passes without policy, so it carries nothing: no extension
 * headers but MLD's router alert (RFC 2711), and no bytes behind it.
 */
static __always_inline bool neighbour_alone(struct __sk_buff *skb, const struct pkt *p)
{
	__u8 h[8];

	if (skb->len != p->end)
		return false;
	if (p->l4 == ETH_HLEN + 40)
		return true;
	if (p->l4 != ETH_HLEN + 48 || (p->icmp_type > 132 && p->icmp_type != 143) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + 40, h, 8) < 0)
		return false;
	/* Next header ICMPv6, length 0, router alert 0, padding of 2. */
	return h[0] == IPPROTO_ICMPV6 && !h[1] && h[2] == 5 && h[3] == 2 && !h[4] && !h[5] &&
	       h[6] == 1 && !h[7];
}

/* Is the destination one of this node's own, so that nobody forwards the packet? */
static __always_inline bool stays_here(struct __sk_buff *skb, const struct endpoint *ep,
				       const struct addr *src, const struct addr *dst)
{
	struct bpf_fib_lookup fib = { .family = 10 /* AF_INET6 */, .ifindex = ep->ifindex };
	long ret;

	__builtin_memcpy(fib.ipv6_src, src, 16);
	__builtin_memcpy(fib.ipv6_dst, dst, 16);
	ret = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	/* Not BPF_FIB_LKUP_RET_FWD_DISABLED: that is of the interface, and all.forwarding decides. */
	return ret == BPF_FIB_LKUP_RET_NOT_FWDED;
}

/*
 * NDP from the pod. NS, NA, RS: hop limit 255, code 0, on-link destination,
 * options that carry no more than the pod's MAC and a nonce. RA and redirect
 * never (RFC 4861).
 */
__noinline int ndp_from_pod(struct __sk_buff *skb, const struct endpoint *ep, const struct pkt *p)
{
	__u32 have, fixed, i;
	__u8 h[24];
	struct addr target;
	bool onlink;

	if (!ep || !p)
		return REASON_NDP;
	have = p->end - p->l4;
	if (p->frag || !neighbour_alone(skb, p))
		return REASON_NDP;
	if (!own_link_local(ep, &p->src) && !is_unspecified(&p->src) && !own_addr(ep, &p->src))
		return REASON_SOURCE;
	if ((p->icmp_type >= 130 && p->icmp_type <= 132) || p->icmp_type == 143)
		return mld_from_pod(skb, p);
	if (p->icmp_type != 133 && p->icmp_type != 135 && p->icmp_type != 136)
		return REASON_NDP;
	if (p->hop_limit != 255)
		return REASON_NDP;
	onlink = is_link_multicast(&p->dst) || is_link_local(&p->dst);
	if (!onlink) {
		/*
		 * Unicast probe of a neighbour with a global address: in the pod's /64
		 * on a bridge; else the node, which would forward it to others.
		 */
		__u32 class = ep->flags & EP_BRIDGED ? 0 : trie_walk(&p->dst, ep->world);

		onlink = class != CLASS_MISSING && class & CLASS_NODE &&
			 (ep->flags & EP_BRIDGED || stays_here(skb, ep, &p->src, &p->dst));
		for (i = 0; i < MAX_ADDRS && ep->flags & EP_BRIDGED; i++) {
			if (i >= ep->naddrs)
				break;
			if (!is_v4(&ep->addrs[i]) && ep->addrs[i].d[0] == p->dst.d[0])
				onlink = true;
		}
	}
	if (!onlink)
		return REASON_NDP;
	fixed = p->icmp_type == 133 ? 8 : 24;
	if (have != fixed && have != fixed + 8 && have != fixed + 16)
		return REASON_NDP;
	__builtin_memset(h, 0, sizeof(h));
	if (bpf_skb_load_bytes(skb, p->l4, h, 8) < 0 || h[1])
		return REASON_NDP;
	if (fixed == 24 && bpf_skb_load_bytes(skb, p->l4 + 8, h + 8, 16) < 0)
		return REASON_NDP;
	/* Up to two options of 8 bytes: the pod's MAC, or a nonce (RFC 7527, which Linux sends). */
	for (i = 0; i < 2; i++) {
		__u8 o[8];

		if (fixed + 8 * i >= have)
			break;
		if (bpf_skb_load_bytes(skb, p->l4 + fixed + 8 * i, o, 8) < 0 || o[1] != 1)
			return REASON_NDP;
		if (o[0] != 14 && ((o[0] != 1 && o[0] != 2) || !mac_equal(o + 2, ep->mac)))
			return REASON_NDP;
	}
	if (p->icmp_type == 136) {
		__builtin_memcpy(&target, h + 8, 16);
		if (is_v4(&target) || (!own_addr(ep, &target) && !own_link_local(ep, &target)))
			return REASON_NDP;
	}
	return 0;
}

#endif
