/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Structures that the programs share with user space. bpf2go turns them into Go
 * types; the Go side never mirrors one by hand. Addresses are 16 bytes in
 * network order, IPv4 as ::ffff:a.b.c.d (RFC 4291 2.5.5.2). Ports are in host
 * byte order. Times are bpf_ktime_get_coarse_ns(), nanoseconds since boot
 * without suspend, to the jiffy.
 */
#ifndef POSTERN_TYPES_H
#define POSTERN_TYPES_H

/* Bump when a pinned structure or its meaning changes; see internal/datapath. */
#define LAYOUT_VERSION 3

#define MAX_ENDPOINTS 1024 /* slots on a node */
#define MAX_ADDRS 8	   /* addresses of one endpoint */
#define MAX_WORLDS 4	   /* worlds that may exist at one time */
#define ADDR_SHARED 0x80000000u /* in endpoint_addrs: several live endpoints have the address */
#define MAX_COMBOS 8	   /* distinct (class, port) pairs of one service port */
#define LIST_STEPS 20	   /* binary search: up to 2^20 intervals in one list */

enum direction { EGRESS = 0, INGRESS = 1 };

/* What happened to a packet. The zero value drops. */
enum verdict { DROPPED = 0, FORWARDED = 1, DEFERRED = 2 };

/*
 * Rule IDs below REASON_MAX are reasons that no policy wrote. They have their
 * own counters and events like rules. Names: internal/flow.
 */
enum reason {
	REASON_NONE = 0,
	REASON_SELF,		/* accept: a pod reaches itself */
	REASON_UNGOVERNED,	/* accept: no policy governs this direction */
	REASON_NO_ENDPOINT,	/* drop: interface without an armed endpoint */
	REASON_ETHERTYPE,	/* drop: not IPv4, IPv6 or ARP */
	REASON_VLAN,		/* drop: VLAN tag */
	REASON_MALFORMED,	/* drop: headers that contradict themselves or the length */
	REASON_IP_OPTIONS,	/* drop: IPv4 options */
	REASON_IPV6_EXT,	/* drop: extension header not permitted, or too many */
	REASON_SOURCE,		/* drop: source address is not the pod's */
	REASON_SOURCE_MAC,	/* drop: source MAC is not the pod's */
	REASON_DEST_MAC,	/* drop: frame is for somebody else on a routed link */
	REASON_ARP,		/* drop: ARP that claims what is not the pod's */
	REASON_NDP,		/* drop: neighbour discovery that claims or carries too much */
	REASON_FRAGMENT,	/* drop: fragment without an accepted first one, out of order or overlapping */
	REASON_TCP_FLAGS,	/* drop: impossible TCP flags */
	REASON_NO_FLOW,		/* drop: not a first packet, and no flow admits it */
	REASON_ICMP_ERROR,	/* drop: ICMP error that belongs to no live flow */
	REASON_TABLE_FULL,	/* drop: the endpoint's flow quota is used up */
	REASON_NO_BACKEND,	/* drop: Service address without a ready backend */
	REASON_DEFERRED,	/* drop: backends differ and nothing looks after DNAT */
	REASON_NO_RULESET,	/* drop: the endpoint's ruleset or world is missing */
	REASON_NDP_ACCEPT,	/* accept: neighbour discovery and ARP */
	REASON_RELATED,		/* accept: ICMP error of a live flow */
	REASON_MARTIAN,		/* drop: destination that is on no wire: loopback, unspecified */
	REASON_QUARANTINE,	/* drop: the interface has lost its pod, or has none yet */
	REASON_SHARED_ADDRESS,	/* drop: several pods have the source address, and it is not known whose packet it is */
	REASON_MAX = 64,
};

struct addr {
	union {
		__u8 b[16];
		__u32 w[4];
		__u64 d[2];
	};
};

enum endpoint_flags {
	EP_GOVERNED_EGRESS = 1 << 0,  /* a policy selects it: unknown frames are dropped */
	EP_GOVERNED_INGRESS = 1 << 1,
	EP_BRIDGED = 1 << 2,	      /* host side is a bridge port: frames to other MACs are normal */
	EP_IP_OPTIONS = 1 << 3,	      /* IPv4 options other than source routes are parsed, not dropped */
	EP_DENY_ALL = 1 << 4,	      /* quarantine: nothing passes, ARP and NDP included */
};

/*
 * One incarnation of a pod's interface. Immutable once `active` points to it:
 * a change writes the slot's other copy and flips `active`.
 */
struct endpoint {
	__u32 gen;	/* unique for each incarnation; 0 is never used */
	__u32 ifindex;	/* host side */
	__u32 ruleset[2][2]; /* [enforced, staged][direction]: directory in `cells`; 0: none */
	__u32 flags;
	__u8 world;
	__u8 naddrs;
	__u8 mac[6];	/* the pod's side */
	struct addr addrs[MAX_ADDRS];
};

enum flow_kind {
	KIND_FLOW = 0,
	KIND_FRAG_EGRESS,	/* lport:rport hold the fragment id */
	KIND_FRAG_INGRESS,
	KIND_ECHO_EGRESS,	/* ICMP echo that the pod asked; lport is the id */
	KIND_ECHO_INGRESS,
	KIND_TRANSLATED,	/* a flow's destination after DNAT */
};

/*
 * The table belongs to one incarnation of one pod, so the pod's end is only the
 * index of its address. The index of an address never changes within an incarnation.
 */
struct flow_key {
	struct addr raddr; /* the other end */
	__u16 lport, rport;
	__u8 proto;
	__u8 kind;
	__u8 local; /* index in endpoint.addrs, or LOCAL_OTHER: link-local, multicast */
	__u8 pad;
};
#define LOCAL_OTHER 0xff

enum flow_state {
	STATE_OPENING = 0, /* only the opener has spoken */
	STATE_OPEN,	   /* both have */
	STATE_CLOSING,	   /* TCP: a reset, or both FINs */
};

struct flow {
	__u64 created, last_seen;
	/* [opener, answer]; not atomic: exact as long as one CPU at a time has a direction */
	__u64 packets[2], bytes[2];
	__u32 revision;		    /* policy revision that the verdict is from */
	__u32 rule;		    /* rule that admits the flow */
	__u32 staged;		    /* what the staged ruleset says, as in entry.rule */
	__u16 frag_next;	    /* fragments: offset that must come next, bytes */
	__u8 opener;		    /* enum direction */
	__u8 state;		    /* enum flow_state */
	__u8 fins;		    /* bit per direction: FIN seen; from RESET on: last a reset */
	__u8 service;		    /* 1: judged by a Service's backends: somebody must translate it */
	__u8 self;		    /* 1: the other end is the pod's own address */
	__u8 pad;
	__u16 backend_port;	    /* of a Service's flow: where DNAT leads it; 0: not seen yet */
	__u8 pad2[2];
	struct addr backend;
};

/*
 * The address trie is an array of lines, a cache line each. The first 8,192 hold
 * the roots: a value for each first 16 bits of an address, IPv4 before IPv6. A
 * value is a class, or TRIE_CHILD with a kind and the index of the child's first line:
 *
 *   dense  the next byte, for many prefixes. Words 0-7: bit i is set where a run
 *          of equal values begins at byte value i; 8: the number of bits set in
 *          the first one, two, three 64-bit words, a byte each; from 9 on, over as
 *          many lines as it takes: a value for each run
 *   leaf   the next 32 bits, up to 8 ranges. Words 0-6: where the second range and
 *          those behind it begin; 8-15: values
 *   tree   the next 32 bits, up to 16 leaves in the lines behind. Words 0-14:
 *          where the second leaf's ranges and those behind it begin; 15: last leaf
 *   skip   word 0: number of bytes, SKIP_WINDOW; 1: value if the address has
 *          others; 2-5: these bytes, left-aligned, two 64-bit words; then a leaf of
 *          5 ranges (6-9: beginnings, 10-14: values), or without SKIP_WINDOW one value
 */
struct trie_line {
	__u32 w[16];
};
#define TRIE_CHILD 0x80000000u
#define TRIE_KIND 0x60000000u
#define TRIE_DENSE 0x00000000u
#define TRIE_LEAF 0x20000000u
#define TRIE_TREE 0x40000000u
#define TRIE_INDEX 0x1fffffffu
#define SKIP_BYTES 0xffu
#define SKIP_WINDOW 0x100u

/* Properties of a class, in the top bits of its number. */
#define CLASS_NODE 0x40000000u /* address of a node: NodePorts answer here */
#define CLASS_MASK 0x3fffffffu

/*
 * (ruleset, class) -> list of intervals, in one array of 64-bit cells per world.
 * A ruleset is a directory: cell i says where the page of classes 64*i to 64*i+63
 * begins; it has one for each class that exists in the world. A page's cells are
 * lists: offset in `entries` << 24 | length. Cell 0 is never used.
 */
#define CELL_PAGE_BITS 6
#define CELL_LEN_BITS 24

/*
 * One interval of a list: from `start` to the next entry's start the verdict is
 * the same. start = protocol << 16 | port. A list begins with start 0.
 */
struct entry {
	__u32 start;
	__u32 rule; /* RULE_VERDICT bits | rule ID */
};
#define RULE_FORWARDED 0x80000000u
#define RULE_DEFERRED 0x40000000u
#define RULE_MASK 0x3fffffffu

/* Service address, port -> what it is translated to. */
struct service_key {
	struct addr addr;
	__u16 port;
	__u8 proto;
	__u8 node_port; /* 4 or 6: any node's address of that family; addr is zero */
	__u8 pad[4];
};
struct combo {
	__u32 class;
	__u16 port;
	__u16 pad;
};
struct service {
	__u32 id;
	__u8 ncombos;	/* 0: no ready backend; COMBOS_MANY: too many to list */
	__u8 pad[3];
	struct combo combos[MAX_COMBOS]; /* in the order of their first backend */
};
#define COMBOS_MANY 0xff

/* Local pods that are backends of a service they may call themselves. */
struct self_key {
	__u32 gen, service;
};

struct settings {
	__u32 layout;
	__u32 revision;	     /* bumped after each change; a flow with another one is judged again */
	__u32 mark;	     /* the "inspected" bit */
	__u32 post_dnat;     /* 1: the look after DNAT is attached */
	__u32 next_gen;	     /* user space: next incarnation number */
	__u32 pad;
	__u64 timeout_opening_ns;
	__u64 timeout_tcp_ns;
	__u64 timeout_closing_ns;
	__u64 timeout_udp_ns;	/* UDP, SCTP and others after an answer */
	__u64 timeout_icmp_ns;
};

struct stats_key {
	__u32 gen;
	__u32 rule; /* rule ID or enum reason, without verdict bits */
};
struct stats {
	__u64 packets, bytes; /* packets that were decided here: first packets and drops */
};

enum event_type { EVENT_VERDICT = 1, EVENT_CLOSE = 2 };

struct event {
	__u64 time;	/* nanoseconds, bpf_ktime_get_coarse_ns */
	__u64 created;	/* of the flow, for EVENT_CLOSE */
	__u64 packets[2], bytes[2];
	struct addr laddr, raddr;
	__u32 gen, revision;
	__u32 rule, staged; /* with verdict bits */
	__u16 lport, rport;
	__u8 type;	/* enum event_type */
	__u8 dir;	/* of the packet (EVENT_VERDICT) or of the opener (EVENT_CLOSE) */
	__u8 proto;
	__u8 tcp_flags;
};

#endif
