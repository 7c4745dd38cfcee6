# `make help` lists the targets. Two matter to a newcomer: demo and test.
SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN     := bin/roost
GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  = -s -w -X github.com/roost-run/roost/internal/cli.version=$(VERSION)
# A package whose tests hang is a failure within this time: many times what the
# longest takes, so that a slow host is none. What one test waits for has a limit
# of its own (internal/patience).
TEST_TIMEOUT ?= 30m
# The tests of internal/builder that run BuildKit's engine in their own process.
ENGINE_TESTS := ^TestDockerfile

export CGO_ENABLED ?= 0

.PHONY: help setup build demo demo-django test check lint unit e2e fuzz bench vm golden clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-11s %s\n", $$1, $$2}'

setup: ## install missing Debian packages (says which)
	@scripts/setup

build: ## build bin/roost
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/roost

demo: setup build ## install, build, and show an app that sleeps, wakes and replays
	@$(GO) run ./e2e/demo -roost $(BIN) $(DEMO_FLAGS)

demo-django: setup build ## deploy the Django example from its folder, and show all a deploy does
	@$(GO) run ./e2e/demo -roost $(BIN) -django $(DEMO_FLAGS)

test: setup check e2e ## everything: lint, unit tests with the race detector, end-to-end tests

check: lint unit ## what a commit must pass

lint: ## gofmt, vet and golangci-lint
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$unformatted" ]; then echo "not gofmt-ed: $$unformatted" >&2; exit 1; fi
	$(GO) vet ./...
	cd tools && $(GO) build -o ../bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@# A cache of this clone's own: findings are cached with the paths of the clone that made
	@# them, so one shared by two clones reports files the exclusions' path rules do not match.
	GOLANGCI_LINT_CACHE=$(CURDIR)/bin/lint-cache bin/golangci-lint run ./...

unit: ## unit tests with the race detector
	@# More packages at once than there are cores: their tests mostly wait.
	@# BuildKit's engine has races of its own (a flag that is set to what it is, fields read for
	@# a trace), which fail one run in many: what runs the engine runs without the detector.
	CGO_ENABLED=1 $(GO) test -race -shuffle=on -p $$((2 * $$(nproc))) -timeout $(TEST_TIMEOUT) -skip '$(ENGINE_TESTS)' $$($(GO) list ./... | grep -v /e2e)
	$(GO) test -shuffle=on -timeout $(TEST_TIMEOUT) -run '$(ENGINE_TESTS)' ./internal/builder

e2e: build ## end-to-end tests on real machines (root)
	@# One package at a time: each compares the whole host before and after.
	$(GO) test -p 1 -count=1 -timeout 20m ./e2e/...

FUZZTIME ?= 30s
fuzz: ## every fuzz target for FUZZTIME
	@scripts/fuzz $(FUZZTIME)

bench: setup build ## measure, and write docs/benchmarks.md (root)
	@scripts/setup wrk haproxy nginx-light
	@$(GO) run ./e2e/bench -roost $(BIN)

vm: ## the tests and the systemd unit on a plain Debian 12 in qemu (root; not part of test)
	$(GO) run ./e2e/vm $(VM_FLAGS)

golden: ## rewrite golden files; read the diff
	$(GO) test $$(git ls-files '*.golden' | sed 's|^|./|; s|/testdata/.*||' | sort -u) -run Golden -update

clean: ## remove build results
	rm -rf bin
