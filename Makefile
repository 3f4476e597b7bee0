# Lockstep. `make help` lists what there is; `make demo` is the place to start.
#
# Everything is built from this checkout with the Go toolchain. `make test` additionally brings up real servers (see
# deploy/dev/devctl) in a directory of their own and takes them down again, also on Ctrl-C.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GO ?= go
# Two packages at a time: the limits of the crash and load tests are set for two cores.
GOTEST := $(GO) test -p 2
# The packages whose concurrency matters most; they run under the race detector too.
RACE_PACKAGES := $(wildcard ./coordinator/txn ./coordinator/engine ./coordinator/store ./coordinator/invoke ./coordinator/dtmwire ./participants)
RACE := $(addsuffix /...,$(addprefix ./,$(patsubst ./%,%,$(RACE_PACKAGES))))
FUZZTIME ?= 20s
DIR ?= .dev
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

.PHONY: help
help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 17

## Building

.PHONY: build
build: ## bin/lockstep and bin/lockstep-participants
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/lockstep ./coordinator/cmd/lockstep
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/lockstep-participants ./participants/cmd/lockstep-participants

.PHONY: lockstep-chaos
lockstep-chaos: ## bin/lockstep-chaos, which makes faults and runs the chaos suite; the demo runs it
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/lockstep-chaos ./chaos/cmd/lockstep-chaos

DEMO_DB := $(if $(DB), --db "$$LOCKSTEP_TEST_$(if $(filter postgres,$(DB)),POSTGRES,MYSQL)_URL")
DEMO_KAFKA := $(if $(filter real,$(KAFKA)), --kafka "$$LOCKSTEP_TEST_KAFKA_URL")

.PHONY: demo
demo: build lockstep-chaos $(if $(DB)$(KAFKA),devctl) ## two regions: a kill, a handover, a cut, drift, a region lost and returned; counted to the cent (DB=postgres or mysql, KAFKA=real: private servers)
	@$(if $(DB)$(KAFKA),bin/devctl run -- sh -c 'exec bin/lockstep demo$(DEMO_DB)$(DEMO_KAFKA)',bin/lockstep demo)

.PHONY: generate
generate: ## regenerate what is generated from the code
	$(GO) generate ./...

.PHONY: proto
proto: ## regenerate the protobuf code (needs protoc, protoc-gen-go, protoc-gen-go-grpc)
	protoc --go_out=. --go_opt=module=github.com/lockstep-tx/lockstep --go-grpc_out=. --go-grpc_opt=module=github.com/lockstep-tx/lockstep \
	  coordinator/record/recordpb/record.proto coordinator/peer/peerpb/peer.proto coordinator/api/apipb/lockstep.proto \
	  participants/branch/batchpb/batch.proto

.PHONY: verify
verify: ## fail if a generated file is not up to date (on a clean checkout)
	$(GO) generate ./...
	git diff --exit-code

.PHONY: lint
lint: ## gofmt and go vet
	@unformatted=$$(git ls-files -z '*.go' | xargs -0 gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "not formatted:"; echo "$$unformatted"; echo "next: gofmt -w ."; exit 1; fi
	$(GO) vet -tags servers ./...

## Testing

.PHONY: unit
unit: ## the tests that need Go alone
	$(GO) vet ./...
	$(GOTEST) -timeout 15m ./...

.PHONY: test
test: devctl ## all that CI runs: real servers, race detector; says first what it installs and starts
	@echo "make test: lint, the race detector on the core packages, then every test with these servers:"
	@bin/devctl plan
	@bin/devctl run -- $(MAKE) --no-print-directory with-servers

# Inside `make test`, with LOCKSTEP_TEST_* set. The last lines are go test's own. -race stands first, so that they are
# those of the whole run.
.PHONY: with-servers
with-servers: lint
	$(GOTEST) -race -timeout 12m $(RACE)
	$(GOTEST) -tags servers -timeout 25m ./...

.PHONY: race
race: ## the core packages under the race detector
	$(GOTEST) -race -timeout 12m $(RACE)

.PHONY: spec
spec: devctl ## Spin on the model of the protocol over two regions, the larger worlds too (minutes, 1 GiB)
	@bin/devctl run -- $(GO) test -tags servers -count=1 -v -timeout 60m ./chaos/spec -spec.all

.PHONY: search
search: ## every state of one transaction with two branches and two holders, within larger bounds than the tests' (minutes, GiBs)
	$(GO) test -count=1 -v -timeout 60m -run TestNothingIsBroken ./chaos/search -larger

SIM_SEEDS ?= 6000
SIM_FROM ?= 1

.PHONY: sim
sim: lockstep-chaos ## SIM_SEEDS seeds of the deterministic simulator from SIM_FROM on, in both modes (minutes)
	bin/lockstep-chaos sim --from $(SIM_FROM) --seeds $(SIM_SEEDS)

CHAOS_OUT ?= chaos-out
CHAOS_ARGS ?=

.PHONY: chaos
chaos: devctl build lockstep-chaos ## the chaos suite's pull-request set on real processes, at most 12 minutes, then eight mutants that it must find; reports in CHAOS_OUT (docs/chaos.md)
	@bin/devctl run -- bin/lockstep-chaos run --out $(CHAOS_OUT) --budget 11m40s --strict $(CHAOS_ARGS)
	@bin/devctl run -- $(GO) test -tags servers -count 1 -timeout 10m -run TestItProvesItself ./chaos/cmd/lockstep-chaos

.PHONY: chaos-nightly
chaos-nightly: devctl build lockstep-chaos ## the chaos suite's nightly set, beyond the pull-request set; reports in CHAOS_OUT
	@deploy/dev/previous.sh bin/previous
	@bin/devctl run --faketime -- bin/lockstep-chaos run --nightly --previous bin/previous --out $(CHAOS_OUT) --budget 45m --strict $(CHAOS_ARGS)

.PHONY: chaos-recall
chaos-recall: devctl build lockstep-chaos ## the drift sweep with sixty seeds of each class, and its control of 100,000 transactions (an hour and a half); reports in CHAOS_OUT
	@bin/devctl run -- bin/lockstep-chaos run --scenario R --drift-seeds 60 --quiet-control 100000 --out $(CHAOS_OUT) --budget 4h --strict $(CHAOS_ARGS)

.PHONY: chaos-mutants
chaos-mutants: devctl ## the product broken on purpose: each mutant must go red under its checker, correct code green, a disabled fault inconclusive
	LOCKSTEP_FURTHER_MUTANTS=1 bin/devctl run -- $(GO) test -tags servers -count 1 -timeout 30m -run 'TestTheSuite|TestItProvesItself|TestFurtherMutants|TestAUsersOwnParticipant' -v ./chaos/cmd/lockstep-chaos

.PHONY: dtm-programs
dtm-programs: lockstep-chaos
	cd coordinator/bench/dtmpeer && GOWORK=off $(GO) build -o ../../../bin/dtmpeer .
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/dtm-wallet ./chaos/cmd/dtm-wallet

.PHONY: chaos-dtm
chaos-dtm: devctl dtm-programs ## the chaos suite against DTM's own servers on its stores; red where it finds something else than docs/dtm-under-test.md says (half an hour)
	@bin/devctl run -- bin/lockstep-chaos dtm --out $(CHAOS_OUT) $(CHAOS_ARGS)

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME each (20s)
	@for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' "$$pkg" | grep '^Fuzz' || true); do \
	    $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$pkg"; \
	  done; \
	done

## Measuring

.PHONY: bench-peers
bench-peers: devctl build ## throughput and latency beside DTM on its stores
	@bin/devctl run -- $(GO) run ./coordinator/bench/cmd/bench-peers

.PHONY: bench-payments
bench-payments: devctl build ## payments on PostgreSQL and MariaDB behind barriers, beside DTM
	@bin/devctl run -- $(GO) run ./coordinator/bench/cmd/bench-payments --db postgres --check
	@bin/devctl run -- $(GO) run ./coordinator/bench/cmd/bench-payments --db mysql --check

.PHONY: bench-hot
bench-hot: devctl ## every payment goes to one merchant: direct, serial batch, buffered, aggregated, sub-accounts
	@bin/devctl run -- $(GO) run ./coordinator/bench/cmd/bench-hot --check

.PHONY: bench-drift
bench-drift: ## what finding one altered record costs, in 10^4 and 10^6 rows and 10^8 fingerprints
	@$(GO) run ./coordinator/bench/cmd/bench-drift --check

.PHONY: bench-recon
bench-recon: ## a day's end: 10 million lines of a channel against 10 million payments, beside sort and join
	@mkdir -p bin
	@CGO_ENABLED=0 $(GO) build -o bin/ ./coordinator/bench/cmd/bench-recon
	@bin/bench-recon --check

.PHONY: bench-regions
bench-regions: devctl build lockstep-chaos ## two regions 40 ms apart, a core and an Apache Kafka each: lag, durabilities, cost of replication, a handover's pause
	@CGO_ENABLED=0 $(GO) build -o bin/ ./coordinator/bench/cmd/bench-participants ./coordinator/bench/cmd/bench-regions
	@bin/devctl run -- sh -c 'export EAST="$$LOCKSTEP_TEST_KAFKA_URL"; exec bin/devctl run -- sh -c "exec bin/bench-regions --check --brokers \$$EAST,\$$LOCKSTEP_TEST_KAFKA_URL"'

.PHONY: bench-failover
bench-failover: build lockstep-chaos ## a region of two, 40 ms apart, killed whole under load, 20 times: RTO in its parts, and what is lost by durability
	@CGO_ENABLED=0 $(GO) build -o bin/ ./coordinator/bench/cmd/bench-failover
	@bin/bench-failover --check

.PHONY: bench-xa
bench-xa: devctl build ## what two-phase commit does beside TCC: a slow participant, one that hangs, a killed coordinator
	@bin/devctl run -- $(GO) run ./coordinator/bench/cmd/bench-xa --db postgres
	@bin/devctl run -- $(GO) run ./coordinator/bench/cmd/bench-xa --db mysql

.PHONY: bench-payments-growth
bench-payments-growth: devctl build ## the same payments with ten million ledger entries present as with none
	@bin/devctl run -- $(GO) run ./coordinator/bench/cmd/bench-payments --db postgres --fill 10000000 --check

.PHONY: bench-recovery
bench-recovery: devctl build ## 100,000 open transactions, SIGKILL, restart
	@bin/devctl run -- $(GO) run ./coordinator/bench/cmd/bench-recovery

.PHONY: bench-growth
bench-growth: build ## speed with a full store against speed with an empty one
	CGO_ENABLED=0 $(GO) build -o bin/journal-fill ./region/journal/cmd/journal-fill
	$(GO) run ./coordinator/bench/cmd/bench-growth --fill-journal 'bin/journal-fill --url sqlite:{data}/journal.db --rows {n}'

## The servers for development

.PHONY: devctl
devctl:
	@mkdir -p bin
	@CGO_ENABLED=0 $(GO) build -o bin/devctl ./deploy/dev/devctl

.PHONY: up
up: devctl ## start private PostgreSQL, MariaDB, Redis, etcd and Kafka under DIR (.dev)
	@bin/devctl up --dir $(DIR)

.PHONY: down
down: devctl ## stop them and remove what they wrote
	@bin/devctl down --dir $(DIR)

.PHONY: status
status: devctl ## show what runs
	@bin/devctl status --dir $(DIR)

.PHONY: clean
clean: down ## stop the servers, remove bin and the test cache
	rm -rf bin
	$(GO) clean -testcache
