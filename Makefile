# make demo   builds and runs `sockswitch demo`: redis on TCP, then over companion sockets, with figures and the proof
# make test   all tests (short forms)
# make build  the product, staged in out/: bin/sockswitch, bin/sockswitchd, lib/libsockswitch.so
# make compatibility  the program matrix: installs the programs, writes Documentation/Compatibility.md (minutes)
# make fuzz   random call sequences on TCP and under the switch, compared call by call (FUZZ_SECONDS=3600)
# make conformance   other people's test suites, natively and under the switch, compared test by test (half an hour)
# make bench  the main figures, beside TCP and Unix sockets, and puts them into README.md (ten minutes, on a quiet machine)
# make mutation  breaks the product in one place after the other: do the tests notice? (an hour)
# make unit-test thread-test end-to-end guests rules   parts of make test
# make deps   installs the Debian packages that are missing; make clean removes what was built
# Every target may be run again; each installs what it misses.

SHELL := /bin/bash
PYTHON ?= python3
SWIFT ?= swift
RELEASE := .build/release

.PHONY: all demo mutation test build bench deps unit-test thread-test end-to-end guests fuzz fuzz-short rules compatibility conformance conformance-short clean

all: build

deps:
	@bash Scripts/install-deps.sh

build: deps
	@echo "== building (release)"
	$(SWIFT) build -c release --product sockswitch
	$(SWIFT) build -c release --product sockswitchd
	$(SWIFT) build -c release --product sockswitch-tool
	@mkdir -p out/bin out/lib
	@install -m 755 $(RELEASE)/sockswitch-tool out/bin/sockswitch
	@install -m 755 $(RELEASE)/sockswitchd out/bin/sockswitchd
	@strip --strip-unneeded -o out/lib/libsockswitch.so $(RELEASE)/libsockswitch.so && chmod 755 out/lib/libsockswitch.so
	@echo "== staged: out/bin/sockswitch out/bin/sockswitchd out/lib/libsockswitch.so"

demo: build
	@out/bin/sockswitch demo

test: build unit-test thread-test end-to-end guests fuzz-short conformance-short rules
	@echo "== all tests passed"

unit-test: deps
	@echo "== unit tests (debug)"
	$(SWIFT) test

thread-test: deps
	@echo "== session and readiness under thread sanitizer"
	STREAM_SECONDS=$${STREAM_SECONDS:-2} $(SWIFT) test --sanitize=thread --scratch-path .build/tsan --filter "SessionTests|ReadinessTests|ReadinessStressTests"

end-to-end: build
	@echo "== real programs under the switch"
	$(SWIFT) build -c release --product StreamPair
	$(PYTHON) Tests/EndToEnd/run.py --build-dir $(RELEASE)

guests: build
	@echo "== ordinary programs with the library loaded"
	$(PYTHON) Tests/GoodGuest/run.py --preload $(CURDIR)/out/lib/libsockswitch.so
	$(PYTHON) Tests/GoodGuest/run.py --preload $(CURDIR)/out/lib/libsockswitch.so --wrapper '$(CURDIR)/out/bin/sockswitch run --'

fuzz: build
	@echo "== random call sequences, on TCP and under the switch"
	$(PYTHON) Tests/Fuzz/run.py --build-dir out/bin --library out/lib/libsockswitch.so --seconds $${FUZZ_SECONDS:-600} $(FUZZ)

fuzz-short: build
	@echo "== random call sequences, on TCP and under the switch (short form)"
	$(PYTHON) Tests/Fuzz/run.py --build-dir out/bin --library out/lib/libsockswitch.so --seconds 10 --from 1

conformance: build
	@bash Scripts/install-deps.sh conformance
	@echo "== other people's suites, natively and under the switch"
	$(PYTHON) Tests/Conformance/run.py --rounds $${CONFORMANCE_ROUNDS:-1}

conformance-short: build
	@echo "== other people's suites, natively and under the switch (short form)"
	$(PYTHON) Tests/Conformance/run.py --short

rules:
	@if [ -x Scripts/check-rules.sh ]; then bash Scripts/check-rules.sh; fi
	$(PYTHON) Tests/Compatibility/run.py --check all
	$(PYTHON) Scripts/mutate.py --check

mutation: deps
	$(PYTHON) Scripts/mutate.py

compatibility: build
	@bash Scripts/install-deps.sh compatibility
	$(PYTHON) Tests/Compatibility/run.py --build-dir $(CURDIR)/out/bin --write

bench: build
	$(SWIFT) build -c release --product sockbench
	$(PYTHON) Benchmarks/run.py --build-dir $(RELEASE) --core --results Benchmarks/results
	$(PYTHON) Benchmarks/run.py --readme

clean:
	rm -rf .build out
