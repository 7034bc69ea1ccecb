/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The few kernel types that the programs name, written by hand so that a build
 * needs no vmlinux.h. UAPI structures are laid out as in include/uapi; kernel
 * structures hold only the members that are read and are relocated by CO-RE.
 */
#ifndef POSTERN_KERNEL_H
#define POSTERN_KERNEL_H

typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef __u16 __sum16;
typedef _Bool bool;
enum { false = 0, true = 1 };

/* include/uapi/linux/bpf.h */
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_ARRAY_OF_MAPS = 12,
	BPF_MAP_TYPE_RINGBUF = 27,
};
enum { BPF_ANY = 0, BPF_NOEXIST = 1, BPF_EXIST = 2 };
enum { BPF_F_NO_PREALLOC = 1, BPF_F_MMAPABLE = 1 << 10, BPF_F_INNER_MAP = 1 << 12 };
enum { BPF_RB_NO_WAKEUP = 1, BPF_RB_FORCE_WAKEUP = 2, BPF_RB_AVAIL_DATA = 0 };
enum { TCX_NEXT = -1, TCX_PASS = 0, TCX_DROP = 2 };

struct bpf_sock;
struct __sk_buff {
	__u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci,
		vlan_proto, priority, ingress_ifindex, ifindex, tc_index, cb[5], hash,
		tc_classid, data, data_end, napi_id, family, remote_ip4, local_ip4,
		remote_ip6[4], local_ip6[4], remote_port, local_port, data_meta;
	__u64 flow_keys;
	__u64 tstamp;
	__u32 wire_len, gso_segs;
	__u64 sk;
	__u32 gso_size;
	__u8 tstamp_type;
	__u32 : 24;
	__u64 hwtstamp;
};

/* include/uapi/linux/if_packet.h */
enum { PACKET_HOST = 0, PACKET_BROADCAST = 1, PACKET_MULTICAST = 2, PACKET_OTHERHOST = 3 };

/* include/uapi/linux/if_ether.h */
enum {
	ETH_P_IP = 0x0800,
	ETH_P_ARP = 0x0806,
	ETH_P_8021Q = 0x8100,
	ETH_P_IPV6 = 0x86DD,
	ETH_P_8021AD = 0x88A8,
	ETH_P_QINQ1 = 0x9100,
};
struct ethhdr {
	__u8 h_dest[6], h_source[6];
	__be16 h_proto;
} __attribute__((packed));

struct iphdr {
	__u8 ver_ihl, tos;
	__be16 tot_len, id, frag_off;
	__u8 ttl, protocol;
	__sum16 check;
	__be32 saddr, daddr;
};
struct ipv6hdr {
	__u8 ver_class, class_flow, flow[2];
	__be16 payload_len;
	__u8 nexthdr, hop_limit;
	__u8 saddr[16], daddr[16];
};
struct arphdr_eth {
	__be16 hrd, pro;
	__u8 hln, pln;
	__be16 op;
	__u8 sha[6], spa[4], tha[6], tpa[4];
} __attribute__((packed));

enum {
	IPPROTO_HOPOPTS = 0,
	IPPROTO_ICMP = 1,
	IPPROTO_TCP = 6,
	IPPROTO_UDP = 17,
	IPPROTO_IPV6 = 41,
	IPPROTO_ROUTING = 43,
	IPPROTO_FRAGMENT = 44,
	IPPROTO_ICMPV6 = 58,
	IPPROTO_NONE = 59,
	IPPROTO_DSTOPTS = 60,
	IPPROTO_SCTP = 132,
	IPPROTO_MH = 135,
	IPPROTO_HIP = 139,
	IPPROTO_SHIM6 = 140,
};

/* Kernel structures, relocated by CO-RE. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

union nf_inet_addr {
	__u32 all[4];
};
/* include/net/netfilter/nf_conntrack_tuple.h */
struct nf_conntrack_man {
	union nf_inet_addr u3;
	union {
		__be16 all;
	} u;
	__u16 l3num;
};
struct nf_conntrack_tuple {
	struct nf_conntrack_man src;
	struct {
		union nf_inet_addr u3;
		union {
			__be16 all;
		} u;
		__u8 protonum;
		__u8 dir;
	} dst;
};
struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
};
struct nf_conn {
	struct nf_conntrack_tuple_hash tuplehash[2];
	unsigned long status;
};
struct net_device {
	int ifindex;
};
struct sk_buff {
	unsigned long _nfct;
	unsigned int len;
	__u32 mark;
	unsigned char *head, *data;
	__u16 network_header;
	__u16 csum_start, csum_offset;
	__u8 ip_summed : 2;
};
struct nf_hook_state {
	__u8 hook, pf;
	struct net_device *in, *out;
};
struct bpf_nf_ctx {
	const struct nf_hook_state *state;
	struct sk_buff *skb;
};
#pragma clang attribute pop

/* include/uapi/linux/bpf.h */
struct bpf_fib_lookup {
	__u8 family, l4_protocol;
	__be16 sport, dport;
	__u16 tot_len;
	__u32 ifindex;
	__be32 flowinfo;
	__u8 ipv6_src[16], ipv6_dst[16];
	__u8 output[16];
};
enum { BPF_FIB_LKUP_RET_NOT_FWDED = 4 };

/* include/uapi/linux/netfilter.h and nf_conntrack_common.h */
enum { NF_DROP = 0, NF_ACCEPT = 1 };
enum { NFPROTO_IPV4 = 2 };
enum { IP_CT_NEW = 2, IP_CT_IS_REPLY = 3, IPS_DST_NAT = 1 << 5 };

#endif
