/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The verdict on a flow's first packet: one question, asked of two rulesets. */
#ifndef POSTERN_DECIDE_H
#define POSTERN_DECIDE_H

#include "lookup.h"

struct question {
	struct addr remote;
	__u16 port;	 /* destination port, host order; 0 for a protocol without ports */
	__u8 proto;
	__u8 dir;	 /* enum direction of the first packet */
	__u8 translated; /* remote is what DNAT chose: Services are not looked at */
};

struct answer {
	__u32 rule;   /* RULE_* bits and a rule ID */
	__u32 staged; /* the same for the staged ruleset; 0 if there is none */
	__u32 service; /* 1: the remote end is a Service's, and its backends were judged */
};

static __always_inline bool has_ports(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_SCTP;
}

/* The verdict that all ready backends share, or DEFERRED. */
__noinline __u32 judge_service(const struct endpoint *ep, const struct service *svc,
				      __u32 ruleset, __u32 proto)
{
	struct self_key sk;
	__u32 result, r, i, n;
	__u32 *others;

	if (!ep || !svc)
		return REASON_NO_RULESET;
	n = svc->ncombos;
	if (!n)
		return ep->flags & EP_GOVERNED_EGRESS ? REASON_NO_BACKEND :
							RULE_FORWARDED | REASON_UNGOVERNED;
	if (n > MAX_COMBOS)
		return RULE_DEFERRED | REASON_DEFERRED;
	result = ruleset_lookup(ep->world, ruleset, svc->combos[0].class,
				proto << 16 | svc->combos[0].port);
	for (i = 1; i < MAX_COMBOS; i++) {
		if (i >= n)
			break;
		r = ruleset_lookup(ep->world, ruleset, svc->combos[i].class,
				   proto << 16 | svc->combos[i].port);
		if ((r ^ result) & RULE_FORWARDED)
			return RULE_DEFERRED | REASON_DEFERRED;
	}
	if (result & RULE_FORWARDED)
		return result;
	/* A pod reaches itself, through its own Service too. */
	sk.gen = ep->gen;
	sk.service = svc->id;
	others = bpf_map_lookup_elem(&self_backends, &sk);
	if (others)
		return *others ? RULE_DEFERRED | REASON_DEFERRED : RULE_FORWARDED | REASON_SELF;
	return result;
}

__noinline int judge(const struct endpoint *ep, const struct question *q, struct answer *a)
{
	struct service *svc = 0;
	__u32 class, world, port, i;
	struct addr remote;

	if (!ep || !q || !a)
		return 0;
	a->rule = REASON_NO_RULESET;
	a->staged = 0;
	a->service = 0;
	remote = q->remote;
	if (q->dir == EGRESS)
		judged(&remote, &q->remote);
	if (own_index(ep, &q->remote) != LOCAL_OTHER) {
		a->rule = RULE_FORWARDED | REASON_SELF;
		return 0;
	}
	world = ep->world;
	class = trie_walk(&remote, world);
	if (class == CLASS_MISSING)
		return 0;
	port = has_ports(q->proto) ? q->port : 0;
	if (q->dir == EGRESS && !q->translated && has_ports(q->proto)) {
		void *m = bpf_map_lookup_elem(&services, &world);
		struct service_key key = { .addr = remote, .port = q->port, .proto = q->proto };

		if (!m)
			return 0;
		svc = bpf_map_lookup_elem(m, &key);
		if (!svc && class & CLASS_NODE) {
			key.addr.d[0] = 0;
			key.addr.d[1] = 0;
			key.node_port = is_v4(&remote) ? 4 : 6;
			svc = bpf_map_lookup_elem(m, &key);
		}
	}
	a->service = !!svc;
	for (i = 0; i < 2; i++) {
		__u32 ruleset = ep->ruleset[i][q->dir & 1];
		__u32 r;

		if (i && !ruleset)
			break;
		if (svc)
			r = judge_service(ep, svc, ruleset, q->proto);
		else
			r = ruleset_lookup(world, ruleset, class, (__u32)q->proto << 16 | port);
		if (i)
			a->staged = r;
		else
			a->rule = r;
	}
	return 0;
}

#endif
