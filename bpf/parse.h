/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Frame -> struct pkt. Whatever is not fully understood gets a reason (I1).
 * Fixed headers are read in place; everything at a variable offset through
 * bpf_skb_load_bytes, which also reads past the linear part (I2).
 * internal/packet has the same reader in Go; tests hold them together.
 */
#ifndef POSTERN_PARSE_H
#define POSTERN_PARSE_H

#include "lookup.h"

enum frag { FRAG_NONE = 0, FRAG_FIRST, FRAG_LATER };

enum tcp_flag { TCP_FIN = 1, TCP_SYN = 2, TCP_RST = 4, TCP_PSH = 8, TCP_ACK = 16, TCP_URG = 32 };

struct pkt {
	struct addr src, dst;
	__u16 sport, dport; /* host order; ICMP echo: the id in both */
	__u8 proto;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 frag;	 /* enum frag */
	__u8 more_frags; /* the last fragment has 0 */
	__u8 icmp_error; /* carries an inner packet at l4 + 8 */
	__u8 ndp;	 /* neighbour discovery or MLD: parse_ndp judges */
	__u8 hop_limit;
	__u32 frag_id;
	__u16 frag_off, frag_len; /* bytes of the fragment's payload */
	__u32 l4;		  /* offset from the frame's start */
	__u32 end;		  /* where the IP packet ends: trailing bytes are not ours */
};

#define ETH_HLEN 14

__noinline int parse_l4(struct __sk_buff *skb, struct pkt *p)
{
	__u32 have;
	__u8 h[16];

	if (!p)
		return REASON_MALFORMED;
	have = p->end - p->l4;

	/* A first fragment must hold what is judged (RFC 1858, RFC 7112). */
	switch (p->proto) {
	case IPPROTO_TCP:
		if (have < 20 || bpf_skb_load_bytes(skb, p->l4, h, 16) < 0)
			return p->frag ? REASON_FRAGMENT : REASON_MALFORMED;
		p->sport = (__u16)h[0] << 8 | h[1];
		p->dport = (__u16)h[2] << 8 | h[3];
		p->tcp_flags = h[13] & 0x3f;
		if ((h[12] >> 4) < 5 || (__u32)(h[12] >> 4) * 4 > have)
			return p->frag ? REASON_FRAGMENT : REASON_MALFORMED;
		/* SYN with FIN or RST, FIN without ACK, no flag at all: no TCP sends these. */
		if ((p->tcp_flags & TCP_SYN && p->tcp_flags & (TCP_FIN | TCP_RST)) ||
		    !(p->tcp_flags & (TCP_SYN | TCP_RST | TCP_ACK)))
			return REASON_TCP_FLAGS;
		return 0;
	case IPPROTO_UDP:
		if (have < 8 || bpf_skb_load_bytes(skb, p->l4, h, 8) < 0)
			return p->frag ? REASON_FRAGMENT : REASON_MALFORMED;
		p->sport = (__u16)h[0] << 8 | h[1];
		p->dport = (__u16)h[2] << 8 | h[3];
		{
			__u32 len = (__u32)h[4] << 8 | h[5];

			/* A GSO frame and a fragment have their own idea of the length. */
			if (len < 8 || (!p->frag && !skb->gso_segs && len != have) ||
			    (p->frag && len < have))
				return REASON_MALFORMED;
		}
		return 0;
	case IPPROTO_SCTP:
		if (have < 12 || bpf_skb_load_bytes(skb, p->l4, h, 12) < 0)
			return p->frag ? REASON_FRAGMENT : REASON_MALFORMED;
		p->sport = (__u16)h[0] << 8 | h[1];
		p->dport = (__u16)h[2] << 8 | h[3];
		return 0;
	case IPPROTO_ICMP:
		if (!is_v4(&p->src))
			return REASON_MALFORMED;
		if (have < 8 || bpf_skb_load_bytes(skb, p->l4, h, 8) < 0)
			return p->frag ? REASON_FRAGMENT : REASON_MALFORMED;
		p->icmp_type = h[0];
		if (h[0] == 0 || h[0] == 8)
			p->sport = p->dport = (__u16)h[4] << 8 | h[5];
		else if (h[0] == 3 || h[0] == 4 || h[0] == 5 || h[0] == 11 || h[0] == 12)
			p->icmp_error = 1;
		return 0;
	case IPPROTO_ICMPV6:
		if (is_v4(&p->src))
			return REASON_MALFORMED;
		if (have < 8 || bpf_skb_load_bytes(skb, p->l4, h, 8) < 0)
			return p->frag ? REASON_FRAGMENT : REASON_MALFORMED;
		p->icmp_type = h[0];
		if (h[0] == 128 || h[0] == 129)
			p->sport = p->dport = (__u16)h[4] << 8 | h[5];
		else if (h[0] < 128)
			p->icmp_error = 1;
		else if ((h[0] >= 130 && h[0] <= 137) || h[0] == 143)
			p->ndp = 1;
		return 0;
	}
	return 0;
}

__noinline int parse_v4(struct __sk_buff *skb, struct pkt *p, __u32 options_ok)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	__u32 ihl, tot, off;

	if (!p)
		return REASON_MALFORMED;
	if ((void *)(ip + 1) > data_end)
		return REASON_MALFORMED;
	set_v4(&p->src, ip->saddr);
	set_v4(&p->dst, ip->daddr);
	p->proto = ip->protocol;
	p->hop_limit = ip->ttl;
	ihl = (ip->ver_ihl & 15) * 4;
	tot = bpf_ntohs(ip->tot_len);
	/* tot_len is 0 on a big TCP GSO frame (include/linux/ip.h, iph_totlen). */
	if (!tot && skb->gso_segs && ip->protocol == IPPROTO_TCP)
		tot = skb->len - ETH_HLEN;
	if (ip->ver_ihl >> 4 != 4 || ihl < 20 || tot < ihl || tot > skb->len - ETH_HLEN)
		return REASON_MALFORMED;
	p->end = ETH_HLEN + tot;
	p->l4 = ETH_HLEN + ihl;
	off = bpf_ntohs(ip->frag_off);
	if (off & 0x3fff) {
		p->frag_off = (off & 0x1fff) * 8;
		p->more_frags = !!(off & 0x2000);
		p->frag_id = bpf_ntohs(ip->id);
		p->frag_len = tot - ihl;
		p->frag = p->frag_off ? FRAG_LATER : FRAG_FIRST;
		if (p->more_frags && (p->frag_len & 7 || !p->frag_len))
			return REASON_FRAGMENT;
		/* Offset 1 rewrites TCP flags (RFC 3128); past 65535 is the ping of death. */
		if ((__u32)p->frag_off + p->frag_len > 65535 || p->frag_off == 8)
			return REASON_FRAGMENT;
	}
	if (ihl > 20) {
		__u8 opts[40];
		__u32 n = ihl - 20, i, skip = 0;

		if (!options_ok)
			return REASON_IP_OPTIONS;
		__builtin_memset(opts, 0, sizeof(opts));
		asm volatile("" : "+r"(n));
		if (n < 1 || n > 40)
			return REASON_MALFORMED;
		if (bpf_skb_load_bytes(skb, ETH_HLEN + 20, opts, n) < 0)
			return REASON_MALFORMED;
		/* Refuse source routes (131, 137) and lists that cannot be walked. */
		for (i = 0; i < 40; i++) {
			__u32 type, len;

			if (i >= n)
				break;
			if (skip) {
				skip--;
				continue;
			}
			type = opts[i];
			if (type == 0)
				break;
			if (type == 1)
				continue;
			if (type == 131 || type == 137 || i + 1 >= n || i + 1 >= 40)
				return REASON_IP_OPTIONS;
			len = opts[i + 1];
			if (len < 2 || i + len > n)
				return REASON_IP_OPTIONS;
			skip = len - 1;
		}
	}
	if (p->frag == FRAG_LATER)
		return 0;
	return parse_l4(skb, p);
}

__noinline int parse_v6(struct __sk_buff *skb, struct pkt *p)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip = data + ETH_HLEN;
	__u32 plen, off, i, fragments = 0;
	__u8 next, h[8];

	if (!p)
		return REASON_MALFORMED;
	if ((void *)(ip + 1) > data_end)
		return REASON_MALFORMED;
	__builtin_memcpy(&p->src, ip->saddr, 16);
	__builtin_memcpy(&p->dst, ip->daddr, 16);
	p->hop_limit = ip->hop_limit;
	next = ip->nexthdr;
	plen = bpf_ntohs(ip->payload_len);
	if (!plen && skb->gso_segs)
		plen = skb->len - ETH_HLEN - 40; /* BIG TCP, no jumbo header on the wire */
	if (ip->ver_class >> 4 != 6 || plen > skb->len - ETH_HLEN - 40)
		return REASON_MALFORMED;
	/* v4-mapped addresses have no business on a wire (RFC 4291, draft-itojun-v6ops-v4mapped-harmful). */
	if (is_v4(&p->src) || is_v4(&p->dst))
		return REASON_MALFORMED;
	off = ETH_HLEN + 40;
	p->end = off + plen;

	/* At most 8 headers: hop-by-hop first only, destination options, one fragment header. */
	for (i = 0; i < 8; i++) {
		__u32 len;

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_DSTOPTS && next != IPPROTO_FRAGMENT)
			break;
		if (off + 8 > p->end || bpf_skb_load_bytes(skb, off, h, 8) < 0)
			return REASON_IPV6_EXT;
		if (next == IPPROTO_FRAGMENT) {
			__u32 fo = (__u32)h[2] << 8 | h[3];

			if (fragments++)
				return REASON_IPV6_EXT;
			p->frag_id = (__u32)h[4] << 24 | (__u32)h[5] << 16 | (__u32)h[6] << 8 | h[7];
			off += 8;
			next = h[0];
			if ((fo & 0xfff9) == 0)
				continue; /* atomic fragment, RFC 6946: not a fragment */
			p->frag_off = fo & 0xfff8;
			p->more_frags = fo & 1;
			p->frag_len = p->end - off;
			p->frag = p->frag_off ? FRAG_LATER : FRAG_FIRST;
			if (p->more_frags && (p->frag_len & 7 || !p->frag_len))
				return REASON_FRAGMENT;
			if ((__u32)p->frag_off + p->frag_len > 65535)
				return REASON_FRAGMENT;
			if (p->frag == FRAG_LATER) {
				p->proto = next;
				p->l4 = off;
				return 0;
			}
			continue;
		}
		if (next == IPPROTO_HOPOPTS && i)
			return REASON_IPV6_EXT;
		len = ((__u32)h[1] + 1) * 8;
		if (len > 256 || off + len > p->end)
			return REASON_IPV6_EXT;
		next = h[0];
		off += len;
	}
	/* A routing header changes the destination; the others hide what follows. */
	if (next == IPPROTO_HOPOPTS || next == IPPROTO_DSTOPTS || next == IPPROTO_FRAGMENT ||
	    next == IPPROTO_ROUTING || next == IPPROTO_NONE || next == IPPROTO_MH ||
	    next == IPPROTO_HIP || next == IPPROTO_SHIM6)
		return REASON_IPV6_EXT;
	p->proto = next;
	p->l4 = off;
	return parse_l4(skb, p);
}

#endif
