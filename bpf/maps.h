/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef POSTERN_MAPS_H
#define POSTERN_MAPS_H

#include "headers/kernel.h"
#include <bpf_helpers.h>
#include "types.h"

/* Types that only inner maps and user space name: without a use they are missing in BTF. */
#define IN_BTF(type) const struct type *unused_##type __attribute__((unused))
IN_BTF(trie_line);
IN_BTF(entry);
IN_BTF(service_key);
IN_BTF(service);
IN_BTF(flow_key);
IN_BTF(flow);
IN_BTF(event);
const enum reason *unused_reason __attribute__((unused));
const enum event_type *unused_event_type __attribute__((unused));



struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
	__uint(map_flags, BPF_F_MMAPABLE);
} config SEC(".maps");

/* Host-side ifindex -> slot. Changes only when an endpoint comes or goes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_ENDPOINTS);
	__type(key, __u32);
	__type(value, __u32);
} endpoint_slots SEC(".maps");

/* Pod address -> slot, and ADDR_SHARED, for the look after DNAT. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_ENDPOINTS * MAX_ADDRS);
	__type(key, struct addr);
	__type(value, __u32);
} endpoint_addrs SEC(".maps");

/* Slot -> which copy in `endpoints` is current: slot * 2 or slot * 2 + 1. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_ENDPOINTS);
	__type(key, __u32);
	__type(value, __u32);
	__uint(map_flags, BPF_F_MMAPABLE);
} active SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_ENDPOINTS * 2);
	__type(key, __u32);
	__type(value, struct endpoint);
} endpoints SEC(".maps");

/*
 * Slot -> flow table of the incarnation. The table's size is the pod's quota.
 * A table dies with its incarnation, so nothing is inherited (I3).
 */
struct flow_table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow_key);
	__type(value, struct flow);
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_ENDPOINTS);
	__type(key, __u32);
	__array(values, struct flow_table);
} flows SEC(".maps");

/* Slot * 2 + direction -> time of the last garbage collection from the packet path. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_ENDPOINTS * 2);
	__type(key, __u32);
	__type(value, __u64);
} collected SEC(".maps");

/*
 * A world is one complete, consistent set of the maps that follow. An endpoint
 * names the world it is judged in; a new world is filled before it is named.
 */
#define WORLD_MAP(name, inner)                                     \
	struct {                                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);          \
		__uint(max_entries, MAX_WORLDS);                   \
		__type(key, __u32);                                \
		__array(values, struct inner);                     \
	} name SEC(".maps")

struct world_trie {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_INNER_MAP | BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct trie_line);
};
WORLD_MAP(trie, world_trie);

struct world_cells {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_INNER_MAP | BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
};
WORLD_MAP(cells, world_cells);

struct world_entries {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_INNER_MAP | BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct entry);
};
WORLD_MAP(entries, world_entries);

struct world_services {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct service_key);
	__type(value, struct service);
};
WORLD_MAP(services, world_services);

/* (endpoint, service) -> number of the service's other backends. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct self_key);
	__type(value, __u32);
} self_backends SEC(".maps");

/* First packets that a rule admitted, by rule ID, for the whole node; exact. */
#define MAX_RULES 262144
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_RULES);
	__type(key, __u32);
	__type(value, struct stats);
} rule_accepts SEC(".maps");

/* The same by slot. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_ENDPOINTS);
	__type(key, __u32);
	__type(value, struct stats);
} slot_accepts SEC(".maps");

/* Drops, exact per endpoint and rule, made on first use. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct stats_key);
	__type(value, struct stats);
} rule_stats SEC(".maps");

/* Counts that must be kept when rule_stats is full, and of lost events. */
enum counter { COUNT_EVENTS_LOST, COUNT_STATS_FULL, COUNT_STATS_FULL_BYTES, COUNT_FLOWS_FULL, COUNTERS };
const enum counter *unused_counter __attribute__((unused));
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

#define EVENTS_SIZE (1 << 22)
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENTS_SIZE);
} events SEC(".maps");

#endif
