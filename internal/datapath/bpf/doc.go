// Package bpf holds the generated loader of the programs in bpf/ and nothing
// else. Its only importer is package datapath. See `make generate`.
package bpf

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package bpf -type endpoint -type flow_key -type flow -type trie_line -type entry -type service_key -type service -type self_key -type settings -type stats_key -type stats -type event -type reason -type counter -type event_type Postern ../../../bpf/postern.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -I../../../bpf -I../../../bpf/headers
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package bpf -no-global-types Bench ../../../bpf/bench.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -I../../../bpf -I../../../bpf/headers
//go:generate sh -c "cat $(ls ../../../bpf/*.c ../../../bpf/*.h ../../../bpf/headers/*.h | LC_ALL=C sort) | sha256sum | cut -c1-64 > sources.sha256"
