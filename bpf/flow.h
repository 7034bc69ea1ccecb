/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Flow state, counters and events of one endpoint. */
#ifndef POSTERN_FLOW_H
#define POSTERN_FLOW_H

#include "decide.h"
#include "parse.h"

static __always_inline void count(enum counter which, __u64 n)
{
	__u32 k = which;
	__u64 *v = bpf_map_lookup_elem(&counters, &k);

	if (v)
		*v += n;
}

/*
 * The reader looks every few milliseconds by itself; it is woken only when the
 * ring's fill crosses a quarter. A wake-up costs more than many verdicts.
 */
static __always_inline void submit(struct event *e)
{
	__u64 fill = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) - EVENTS_SIZE / 4;

	bpf_ringbuf_submit(e, fill < 4096 ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
}

/* Exact: a decision is counted under its rule, or as unattributed if the table is full. */
__noinline int count_rule(__u32 gen, __u32 rule, __u64 packets, __u64 bytes)
{
	struct stats_key k = { .gen = gen, .rule = rule & RULE_MASK };
	struct stats *s = bpf_map_lookup_elem(&rule_stats, &k);

	if (!s) {
		struct stats zero = {};

		bpf_map_update_elem(&rule_stats, &k, &zero, BPF_NOEXIST);
		s = bpf_map_lookup_elem(&rule_stats, &k);
		if (!s) {
			count(COUNT_STATS_FULL, packets);
			count(COUNT_STATS_FULL_BYTES, bytes);
			return 0;
		}
	}
	s->packets += packets;
	s->bytes += bytes;
	return 0;
}

static __always_inline __u64 timeout_of(const struct settings *cfg, const struct flow_key *k,
					const struct flow *f)
{
	if (k->kind == KIND_FRAG_EGRESS || k->kind == KIND_FRAG_INGRESS)
		return 5000000000ULL;
	if (f->state == STATE_OPENING)
		return cfg->timeout_opening_ns;
	if (k->proto == IPPROTO_TCP)
		return f->state == STATE_CLOSING ? cfg->timeout_closing_ns : cfg->timeout_tcp_ns;
	if (k->kind == KIND_ECHO_EGRESS || k->kind == KIND_ECHO_INGRESS)
		return cfg->timeout_icmp_ns;
	return cfg->timeout_udp_ns;
}

/* In flow.fins, shifted by the direction: the last packet was a reset. */
#define RESET 4

/* Who goes on sending has sent no reset: somebody else forged it. */
static __always_inline void revive(struct flow *f, __u32 dir)
{
	f->fins &= ~(RESET << (dir & 1));
	if (f->state == STATE_CLOSING && f->fins < 3)
		f->state = STATE_OPEN;
}

static __always_inline const struct endpoint *endpoint_of(__u32 slot)
{
	__u32 which, *v = bpf_map_lookup_elem(&active, &slot);

	if (!v)
		return 0;
	which = *(volatile __u32 *)v;
	return bpf_map_lookup_elem(&endpoints, &which);
}

static __always_inline bool expired(const struct settings *cfg, const struct flow_key *k,
				    const struct flow *f, __u64 now)
{
	/* last_seen of another CPU may be a jiffy ahead of now. */
	return (__s64)(now - f->last_seen) > (__s64)timeout_of(cfg, k, f);
}

__noinline int emit_close(const struct endpoint *ep, const struct flow_key *k, const struct flow *f,
			  __u64 now)
{
	struct event *e;

	if (!ep || !k || !f || k->kind == KIND_FRAG_EGRESS || k->kind == KIND_FRAG_INGRESS)
		return 0;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		count(COUNT_EVENTS_LOST, 1);
		return 0;
	}
	e->time = now;
	e->created = f->created;
	e->packets[0] = f->packets[0];
	e->packets[1] = f->packets[1];
	e->bytes[0] = f->bytes[0];
	e->bytes[1] = f->bytes[1];
	if (k->local < MAX_ADDRS)
		e->laddr = ep->addrs[k->local];
	else
		__builtin_memset(&e->laddr, 0, sizeof(e->laddr));
	e->raddr = k->raddr;
	e->lport = k->lport;
	e->rport = k->rport;
	e->gen = ep->gen;
	e->revision = f->revision;
	e->rule = f->rule;
	e->staged = f->staged;
	e->type = EVENT_CLOSE;
	e->dir = f->opener;
	e->proto = k->proto;
	e->tcp_flags = 0;
	submit(e);
	return 0;
}

/* Exact too: what a rule admitted, and what the slot's pod had admitted. */
static __always_inline void count_accept(__u32 slot, __u32 rule, __u64 packets, __u64 bytes)
{
	struct stats *s;

	rule &= RULE_MASK;
	s = bpf_map_lookup_elem(&rule_accepts, &rule);
	if (s) {
		s->packets += packets;
		s->bytes += bytes;
	}
	s = bpf_map_lookup_elem(&slot_accepts, &slot);
	if (s) {
		s->packets += packets;
		s->bytes += bytes;
	}
}

struct collect_ctx {
	const struct settings *cfg;
	const struct endpoint *ep;
	__u64 now;
	__u32 removed;
	__u32 pressed; /* 1: the table is full; 2: and the pod itself wants to open a flow */
};

/* A closed connection that may go when the table is full, nanoseconds idle. */
#define CLOSED_ENOUGH_NS 200000000LL
/* A flow to the pod that it has not answered may go as early. */
#define UNANSWERED_NS 1000000000LL

static long collect_one(void *map, struct flow_key *k, struct flow *f, struct collect_ctx *ctx)
{
	__s64 idle = ctx->now - f->last_seen;
	struct flow_key key;

	if (!expired(ctx->cfg, k, f, ctx->now) &&
	    !(ctx->pressed && f->state == STATE_CLOSING && idle > CLOSED_ENOUGH_NS) &&
	    !(ctx->pressed && f->state == STATE_OPENING && f->opener == INGRESS &&
	      k->kind != KIND_FRAG_EGRESS && k->kind != KIND_FRAG_INGRESS &&
	      (ctx->pressed == 2 || idle > UNANSWERED_NS)))
		return 0;
	__builtin_memcpy(&key, k, sizeof(key));
	emit_close(ctx->ep, &key, f, ctx->now);
	if (!bpf_map_delete_elem(map, &key))
		ctx->removed++;
	return 0;
}

/*
 * Remove what has expired from one endpoint's table; returns how many. pressed:
 * the table is full, so closed connections go before their time: a pod that
 * opens and closes 20,000 a second must not be refused the next. Flows to the pod
 * that it has not answered go too: those who flood it must not stop it.
 */
__noinline __u32 collect(__u32 slot, __u64 now, __u32 pressed)
{
	struct collect_ctx ctx = { .now = now, .pressed = pressed };
	__u32 zero = 0;
	void *table = bpf_map_lookup_elem(&flows, &slot);

	ctx.cfg = bpf_map_lookup_elem(&config, &zero);
	ctx.ep = endpoint_of(slot);
	if (!table || !ctx.cfg || !ctx.ep)
		return 0;
	bpf_for_each_map_elem(table, collect_one, &ctx, 0);
	return ctx.removed;
}

#endif
