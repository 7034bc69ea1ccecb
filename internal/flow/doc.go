// Package flow holds what is known of a conversation: the event that the
// datapath sends, the record that is kept of it, and filters over records.
//
// Flow of data: ring buffer -> datapath -> Event -> agent adds names -> Record -> store, API, CLI.
//
// Layer 1: no Kubernetes, no eBPF, no I/O, no clock.
package flow
