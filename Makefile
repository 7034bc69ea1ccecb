# Each target is one line: a tool or a script. `make help` lists them.
CONTROLLER_GEN = go tool -modfile=tools/go.mod controller-gen
GOLANGCI_LINT = go tool -modfile=tools/lint/go.mod golangci-lint

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: generate
generate: ## write deepcopy functions and CRDs from api/
	$(CONTROLLER_GEN) object paths=./api/... crd:crdVersions=v1 paths=./api/... output:crd:dir=deploy/crd

.PHONY: lint
lint: ## check style and the directions of imports
	$(GOLANGCI_LINT) run ./...
