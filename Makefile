# What a person types to try, test and check Lodge. `make help` lists it.

CARGO ?= cargo
LODGE := target/release/lodge

.PHONY: help build demo test unit-test boot-test fuzz lint lab bench install deps lab-deps

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

build: deps ## Build lodge and lodge-vmm
	$(CARGO) build --release --locked -p cli -p vmm
	# Static, so that it runs in any guest.
	$(CARGO) rustc --release --locked -p agent --bin lodge-agent -- -C target-feature=+crt-static -C strip=symbols

demo: build ## Boot a Debian 12 here; builds its image the first time
	$(LODGE) image build debian:12
	$(LODGE) run debian:12 --cpus 2 --memory 1G

test: lab-deps unit-test boot-test ## Run all tests

unit-test: deps ## Run the tests that boot no operating system
	$(CARGO) test --workspace --exclude guest-tests --locked

boot-test: build ## Boot real guests and look at them from inside and outside
	LODGE_BIN=$(CURDIR)/$(LODGE) $(CARGO) test --locked --no-fail-fast -p guest-tests

fuzz: ## Run every fuzz target for SECONDS (10)
	CARGO="$(CARGO)" fuzz/run $(SECONDS)

lint: ## Check formatting, clippy's advice and the house rules
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) xtask check

lab: build lab-deps ## Run Lodge on a stock KVM in an emulated machine with AMD-V
	LODGE_BIN=$(CURDIR)/$(LODGE) $(CARGO) xtask lab

bench: build ## Measure Lodge side by side with QEMU; writes docs/performance.md
	@scripts/install-bench-deps
	LODGE_BIN=$(CURDIR)/$(LODGE) $(CARGO) xtask bench

install: build ## Install the programs, manual pages and completions below PREFIX (/usr/local)
	install -D -t $(DESTDIR)$(PREFIX)/bin target/release/lodge target/release/lodge-vmm target/release/lodge-agent
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	$(LODGE) man $(DESTDIR)$(PREFIX)/share/man/man1
	$(LODGE) completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/lodge

PREFIX ?= /usr/local
SECONDS ?= 10

deps:
	@scripts/install-deps

# Without these, some tests are skipped.
lab-deps: deps
	-@scripts/install-lab-deps
