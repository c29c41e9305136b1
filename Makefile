# `make` lists the targets. Linux only: network namespaces, overlayfs and containerd are what this is about.

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X github.com/capelin-io/capelin/internal/daemon/version.version=$(VERSION)
GOBUILD  := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)'
FUZZTIME ?= 10s
BENCH    ?= .
RUN      ?= .

I := integration
B := $(I)/bin

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
.DEFAULT_GOAL := help

.PHONY: build
build: ## bin/capelin for this machine, and bin/linux-amd64/ and bin/linux-arm64/
	@host=$$($(GO) env GOHOSTARCH); for arch in $$host $$(printf '%s\n' amd64 arm64 | grep -vx $$host); do \
	  GOARCH=$$arch $(GOBUILD) -o bin/linux-$$arch/capelin ./cmd/capelin && ln -sf linux-$$host/capelin bin/capelin || exit 1; done

.PHONY: demo
demo: ## three containerd nodes pull one image through the swarm, on this machine (root)
	@$(I)/prepare.sh demo
	@$(MAKE) -s --no-print-directory $(B)/capelin $(B)/2.4/containerd $(B)/registry
	@cd $(I) && $(GO) build -trimpath -o bin/demo ./cmd/demo
	@$(B)/demo

.PHONY: demo-cluster
demo-cluster: ## three servers that keep everything in S3, and three nodes: one server is killed in the middle (root; two minutes)
	@$(I)/prepare.sh demo
	@$(MAKE) -s --no-print-directory $(B)/capelin $(B)/2.4/containerd $(B)/versitygw
	@cd $(I) && $(GO) build -trimpath -o bin/demo ./cmd/demo
	@$(B)/demo -cluster

# One after the other, with what each took.
.PHONY: test
test: ## unit tests, the simulators and integration tests (root)
	@MAKE='$(MAKE)' $(I)/stages.sh prepare vet unit sim-test ring-sim tools storages integration

.PHONY: prepare
prepare: ## what of Debian's packages the tests need and is missing (root)
	@$(I)/prepare.sh test

.PHONY: vet
vet: ## go vet, on both modules
	$(GO) vet ./...
	cd $(I) && $(GO) vet ./...

# No test's verdict depends on the time it takes: these end what hangs, on however busy a machine.
UNIT_TIMEOUT  ?= 30m
SUITE_TIMEOUT ?= 2h

# Small heaps that live for seconds: to collect them as often as usual takes a tenth of the time.
.PHONY: unit
unit: ## unit tests of the module
	GOGC=400 $(GO) test -timeout $(UNIT_TIMEOUT) ./...

.PHONY: sim-test
sim-test: ## the simulator's large cases, and the table of goals with a 26th of the hosts (a minute)
	$(GO) test -timeout $(UNIT_TIMEOUT) ./internal/sim -sim.table

.PHONY: ring-sim
ring-sim: ## the ring of origins in virtual time: SEEDS (100) of an hour each in which everything fails (a minute)
	$(GO) test -timeout $(UNIT_TIMEOUT) -run 'TestChaos|TestHistories' ./origind/ringstate -ring.seeds $(or $(SEEDS),100)

.PHONY: integration
integration: prepare ## tests against real containerds and a real registry (root); RUN=regexp chooses
	@$(MAKE) -s --no-print-directory tools $(B)/capelin
	CAPELIN_TEST_TOOLS=1 $(GO) test -count 1 -run TestRealContainerd ./plugin/install
	cd $(I) && $(GO) test -timeout $(SUITE_TIMEOUT) -count 1 -run '$(RUN)' $$($(GO) list ./... | grep -v '/storages$$')

# Each kind of storage against a server of its own. They wait more than they work, between two attempts. ARGS=-storages.full has objects of 5 GB.
.PHONY: storages
storages: prepare ## the kinds of storages against real servers of theirs; RUN=regexp chooses
	@$(MAKE) -s --no-print-directory storage-servers
	cd $(I) && $(GO) test -timeout $(SUITE_TIMEOUT) -count 1 -parallel 8 -run '$(RUN)' ./storages $(ARGS)

.PHONY: upgrade
upgrade: prepare ## an agent of the commit FROM, with its units, is upgraded to this tree's under load (root)
	@rm -rf $(B)/old
	@$(MAKE) -s --no-print-directory $(B)/2.4/containerd $(B)/registry $(B)/old/capelin
	cd $(I) && $(GO) test -timeout $(SUITE_TIMEOUT) -count 1 -v -run 'TestUpgrade$$' .
	@rm -rf $(B)/old

.PHONY: ring
ring: prepare ## rings of origins lose members, disks, links and backends at the sizes and in the times that are promised (root)
	@$(MAKE) -s --no-print-directory $(B)/capelin
	cd $(I) && $(GO) test -timeout $(SUITE_TIMEOUT) -count 1 -v -parallel 1 -run 'TestRing' . -ring.full

# LOAD is how many others want the processors meanwhile. What fails here judges by the clock.
.PHONY: stress
stress: ## unit tests three times at a LOAD of 40, then integration tests at 8 (root; two hours)
	@$(I)/prepare.sh stress
	$(I)/stress.sh $(or $(LOAD),40) $(GO) test -count 3 -timeout $(SUITE_TIMEOUT) ./...
	$(I)/stress.sh $(or $(LOAD),8) $(MAKE) --no-print-directory integration

.PHONY: race
race: ## unit tests under the race detector
	$(GO) test -race -timeout $(UNIT_TIMEOUT) ./...

.PHONY: mutate
mutate: ## which test notices a sync that is missing, or a decision turned round? ARGS='-run content/' tries some (ten minutes)
	cd $(I) && $(GO) run ./cmd/mutate $(ARGS)

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (10s)
	@set -e; for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "$$p $$f"; $(GO) test -timeout 10m -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p; \
	  done; done

.PHONY: bench
bench: ## benchmarks; BENCH=regexp chooses
	$(GO) test -timeout 20m -run '^$$' -bench '$(BENCH)' -benchmem ./...

.PHONY: benchcmp
benchcmp: ## benchmarks of this tree against those of BASE (a commit), ten runs each
	@test -n "$(BASE)" || { echo "usage: make benchcmp BASE=<commit> [BENCH=regexp]"; exit 2; }
	$(I)/benchcmp.sh '$(BASE)' '$(BENCH)'

# Whole clusters on this machine, which should do nothing else; each takes minutes.
# ARGS are more flags: make bench-pull ARGS='-cases small -json pull.json'
ARGS ?=

BENCHES := $(B)/bench-pull $(B)/bench-fanout $(B)/bench-swarm $(B)/bench-tracker $(B)/bench-sources $(B)/bench-ring $(B)/bench-storages $(B)/bench-huge
.PHONY: $(BENCHES)
$(BENCHES): $(B)/bench-%:
	@cd $(I) && $(GO) build -trimpath -o bin/$(@F) ./cmd/$(@F)

.PHONY: bench-pull bench-fanout bench-swarm bench-tracker bench-sources bench-ring bench-storages bench-huge calibrate
bench-pull: $(B)/capelin $(B)/2.4/containerd $(B)/registry
bench-pull: $(B)/bench-pull ## a pull by a stock containerd and by one with Capelin, in turn (root; a quarter of an hour)
	@$(I)/prepare.sh bench
	cd $(I) && bin/bench-pull $(ARGS)

# The usual fan-outs, or N nodes, a blob of SIZE bytes and links of RATE bytes per second.
N ?= 0
SIZE ?= 134217728
RATE ?= 10e6
bench-fanout: $(B)/capelin $(B)/bench-fanout ## one blob from one origin to N agents over links of RATE (root; ten minutes)
	@$(I)/prepare.sh demo
	cd $(I) && bin/bench-fanout -n $(N) -size $(SIZE) -rate $(RATE) $(ARGS)

calibrate: $(B)/capelin $(B)/bench-fanout ## fan-outs by real agents and in the simulator, side by side (root)
	@$(I)/prepare.sh demo
	cd $(I) && bin/bench-fanout -n 16 -size 128e6 -rate 20e6 -runs 3 -simulate $(ARGS)
	cd $(I) && bin/bench-fanout -n 32 -size 128e6 -rate 10e6 -runs 3 -simulate $(ARGS)

bench-swarm: $(B)/capelin $(B)/bench-swarm ## agents on one loopback interface, as fast as they can (root)
	@$(I)/prepare.sh demo
	cd $(I) && bin/bench-swarm $(ARGS)

bench-tracker: $(B)/capelin $(B)/bench-tracker ## a tracker's memory with 15,000 streams, and how soon it knows all after a kill -9
	cd $(I) && bin/bench-tracker $(ARGS)

bench-sources: $(B)/capelin $(B)/2.4/containerd $(B)/registry
bench-sources: $(B)/bench-sources ## pulls beside peers and registries that do not deliver, against a stock containerd (root; a quarter of an hour)
	@$(I)/prepare.sh demo
	cd $(I) && bin/bench-sources $(ARGS)

bench-ring: $(B)/capelin $(B)/bench-ring ## what a ring of origins costs a push, against a single one (root; five minutes)
	@$(I)/prepare.sh demo
	cd $(I) && TMPDIR=/dev/shm bin/bench-ring $(ARGS)

bench-storages: $(B)/bench-storages ## kinds of storages against the tools that copy to them, on the same servers (ten minutes)
	@$(I)/prepare.sh storages
	@$(MAKE) -s --no-print-directory storage-servers
	cd $(I) && bin/bench-storages $(ARGS)

bench-huge: $(B)/capelin $(B)/versitygw
bench-huge: $(B)/bench-huge ## one blob of 100 GB, cold through an origin and the swarm; ARGS='-size 20e9 -push' all the way through S3 (root; a quarter of an hour)
	@$(I)/prepare.sh demo
	cd $(I) && bin/bench-huge $(ARGS)

.PHONY: sim
sim: ## the table of goals in virtual time: thousands of hosts (an hour)
	$(GO) run ./internal/sim/cmd/sim $(ARGS)

.PHONY: lint
lint: $(B)/golangci-lint ## gofmt, go vet, staticcheck and others, on both modules
	$(B)/golangci-lint run ./...
	cd $(I) && bin/golangci-lint run --config ../.golangci.yml ./...

.PHONY: proto
proto: ## regenerate control/trackerpb (needs protoc)
	@command -v protoc >/dev/null || { echo "make proto needs protoc (Debian: protobuf-compiler)"; exit 1; }
	control/trackerpb/generate.sh

# Tools are modules of their own, so that each containerd is built with exactly
# the dependencies that it was released with.
CTRTAGS   := no_btrfs no_zfs no_devmapper
TOOLBUILD := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w'

.PHONY: tools
tools: $(B)/2.1/containerd $(B)/2.2/containerd $(B)/2.3/containerd $(B)/2.4/containerd
tools: $(B)/registry $(B)/conformance $(B)/old/capelin storage-servers ## pinned containerds, ctr, shim, registry, OCI's conformance test, storages' servers and an older capelin into integration/bin

$(B)/%/containerd: $(I)/tools/containerd-%/go.mod
	@echo "building containerd $$(sed -n 's,.*containerd/containerd/v2 v\([0-9.]*\).*,\1,p' $<) (once, a minute or two)"
	@mkdir -p $(@D)
	@cd $(<D) && for c in $$(sed -n 's,^\(tool \|\t\)\(github.com/.*/cmd/[a-z0-9-]*\)$$,\2,p' go.mod); do \
	  $(TOOLBUILD) -tags '$(CTRTAGS)' -o ../../bin/$*/ $$c || exit 1; done
	@test -x $@ && touch $@

$(B)/registry: $(I)/tools/registry/go.mod
	@echo "building the registry (once)"
	@cd $(<D) && $(TOOLBUILD) -o ../../bin/registry github.com/distribution/distribution/v3/cmd/registry
	@touch $@

$(B)/conformance: $(I)/tools/conformance/go.mod
	@echo "building the OCI distribution conformance test (once)"
	@cd $(<D) && $(TOOLBUILD) -o ../../bin/conformance github.com/opencontainers/distribution-spec/conformance
	@touch $@

# What package integration/storages starts.
.PHONY: storage-servers
storage-servers: $(B)/versitygw $(B)/fake-gcs-server $(B)/registry $(B)/azurite/node_modules/azurite/package.json $(B)/hadoop/java

$(B)/versitygw: $(I)/tools/versitygw/go.mod
	@echo "building versitygw, an S3 server (once, a minute or two)"
	@cd $(<D) && $(TOOLBUILD) -o ../../bin/versitygw github.com/versity/versitygw/cmd/versitygw
	@touch $@

$(B)/fake-gcs-server: $(I)/tools/fake-gcs-server/go.mod
	@echo "building fake-gcs-server (once, a few minutes)"
	@cd $(<D) && $(TOOLBUILD) -o ../../bin/fake-gcs-server github.com/fsouza/fake-gcs-server
	@touch $@

# It asks for Node.js 22, and works with 20.
$(B)/azurite/node_modules/azurite/package.json: $(I)/tools/azurite/package-lock.json
	@echo "installing azurite, an emulator of Azure's Blob Storage (once, a few minutes)"
	@mkdir -p $(B)/azurite && cp $(<D)/package.json $(<D)/package-lock.json $(B)/azurite/
	@cd $(B)/azurite && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# Jars are downloaded, not built: Maven takes them from where its settings say.
$(B)/hadoop/java: $(I)/tools/hadoop/pom.xml $(I)/tools/hadoop/java
	@echo "downloading Hadoop's HDFS, 60 MB (once, half a minute)"
	@rm -rf $(@D) && mkdir -p $(@D)
	@cd $(<D) && mvn -B -q dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=$(abspath $(@D))
	@cp $(I)/tools/hadoop/java $@ && touch $@

# A shallow clone has no other commit than its own, and upgrades from that.
FROM ?= 7c156ac
$(B)/old/capelin:
	@rm -rf $(@D) && mkdir -p $(@D)/src
	@from=$$(git rev-parse -q --verify '$(FROM)^{commit}' || git rev-parse HEAD) && \
	  echo "building capelin of $$from, to upgrade from (once)" && git archive $$from | tar -x -C $(@D)/src
	@cd $(@D)/src && $(TOOLBUILD) -o ../capelin $$(test -d cmd/capelin && echo ./cmd/capelin || echo .)
	@rm -rf $(@D)/src

$(B)/golangci-lint: $(I)/tools/lint/go.mod
	@echo "building golangci-lint (once, a few minutes)"
	@cd $(<D) && $(TOOLBUILD) -o ../../bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@

# Always: go decides whether anything changed.
.PHONY: $(B)/capelin
$(B)/capelin:
	$(GOBUILD) -o $@ ./cmd/capelin

.PHONY: clean
clean: ## remove what was built
	rm -rf bin $(B)
