# Each target is one line: a tool or a script. `make help` lists them.
# A failure on the left of a pipe is a failure.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

CONTROLLER_GEN = go tool -modfile=tools/go.mod controller-gen
GOLANGCI_LINT = go tool -modfile=tools/lint/go.mod golangci-lint

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build posternd and postern into bin/
	go build -o bin/ ./cmd/...

.PHONY: generate
generate: ## write deepcopy functions and CRDs from api/, docs/cli.md and docs/posternd.md, BPF objects from bpf/ (needs clang-19)
	$(CONTROLLER_GEN) object paths=./api/... crd:crdVersions=v1 paths=./api/... output:crd:dir=deploy/crd
	go generate ./internal/datapath/bpf ./internal/cli ./internal/daemon

.PHONY: lint
lint: ## check style and the directions of imports
	$(GOLANGCI_LINT) run ./...

# The race detector needs a C compiler; a machine without one tests without it.
RACE ?= $(shell command -v $${CC:-gcc} >/dev/null 2>&1 && echo -race)
COMPARISONS ?= 1000000
FRAMES ?= 500000
# One seed, so that a change is to blame for a failure; SEED=$$RANDOM looks for new ones.
SEED ?= 20261123

.PHONY: test
# The race detector slows mutants and comparisons tenfold; they run in full without it.
# One package at a time: tests on packets have the machine to themselves.
test: ## run all tests, as root: those on packets need it
	go test $(RACE) -run '^$$' ./... >/dev/null # compiles on all cores
	go test $(RACE) -p 1 -count=1 -timeout 30m ./...
	go test -count=1 -timeout 20m -run TestMutants ./internal/manifests
	POSTERN_SEED=$(SEED) POSTERN_COMPARISONS=$(COMPARISONS) POSTERN_FRAMES=$(FRAMES) go test -timeout 20m -count=1 -v -run TestKernelAgrees ./internal/datapath | grep -vE '^ *(=== RUN|--- PASS: .*/round-)'

FUZZTIME ?= 30s

.PHONY: fuzz
fuzz: ## fuzz every target for FUZZTIME
	hack/fuzz.sh $(FUZZTIME)

.PHONY: cross
cross: ## build for arm64, and postern for macOS and Windows
	GOARCH=arm64 go build -o /dev/null ./cmd/posternd
	for os in linux darwin windows; do for arch in amd64 arm64; do GOOS=$$os GOARCH=$$arch go build -o /dev/null ./cmd/postern || exit 1; done; done

SUDO ?= $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: demo
demo: build ## see it work in a lab, in under a minute; needs root
	$(SUDO) bin/postern demo

.PHONY: bench
bench: ## measure what docs/performance.md states, as root; prints its table
	go run ./test/bench
