# One verb per act. People, pre-commit and CI call these and nothing else. `make` alone lists them.

TORCH ?= torch==2.13.0
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTS ?= tests
MINUTES ?= 10
COMPONENTS := core models monitoring training serving export promotion

.DEFAULT_GOAL := help
.PHONY: help install format lint type test test-slow test-gpu demo serve bench soak conformance docs lock clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create $(VENV) and install everything that developing takes (TORCH=… chooses another torch)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

format: install ## let ruff rewrite the code
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .

lint: install ## style, and which component may import which
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports --no-logo

type: install ## mypy, strict, over everything
	$(BIN)/mypy -n 2

test: lint type ## lint, types, contracts and the tests, in under ten minutes on two cores
	$(BIN)/pytest -n 2 --dist loadgroup -m 'not slow' $(TESTS)

test-slow: install ## the tests that take minutes
	$(BIN)/pytest -m slow $(TESTS)

test-gpu: install ## the tests that take an NVIDIA GPU, each of which says what is missing where there is none
	$(BIN)/pytest -m gpu $(TESTS)

demo: install ## the whole life of a model on real data, in a temporary home
	$(BIN)/seatrial demo

serve: install ## serve the champion of the digits model from this directory's home
	$(BIN)/seatrial serve digits-cnn@champion

bench: install ## measure everything (hours, on an idle machine), and write benchmarks/README.md's tables
	$(BIN)/python -m benchmarks

soak: install ## ten minutes of mixed traffic, swaps and faults: failures, memory, descriptors (MINUTES=… for longer)
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

conformance: install ## judge our server, Triton and BentoML by the protocol, and write docs/conformance.md
	$(BIN)/python -m docs.conformance

docs: install ## regenerate docs/reference.md, the dashboards and the rules
	$(BIN)/python -m docs.generate

lock: ## resolve anew: constraints.txt and serving/requirements.lock
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check '$(TORCH)'
	build/lock/bin/pip install --quiet --disable-pip-version-check '.[dev]'
	build/lock/bin/pip freeze --exclude seatrial --exclude torch > constraints.txt
	build/lock/bin/pip-compile --quiet --extra serving --extra text --extra oidc --generate-hashes --strip-extras --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options --unsafe-package seatrial \
		--constraint constraints.txt --output-file build/lock/serving.lock pyproject.toml
	grep -v '^#' build/lock/serving.lock | sed '/^$$/d' > serving/requirements.lock

clean: ## remove the environment, caches and the local home
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build .seatrial
