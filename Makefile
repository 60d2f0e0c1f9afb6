# All development commands. They need Python 3.10 or later, make, and a package index.

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python3.10 python,\
	$(shell $(p) -c 'import sys, ensurepip, venv; sys.version_info >= (3, 10) and print("$(p)")' 2>/dev/null)))
VENV := .venv
PEERS := .venv-peers
BENCHMARKS := docs/assets/benchmarks.json
BIN := $(VENV)/bin
PAGES := $(PAGE)
# Many tests wait for a process or a timer, so four workers are faster than two on two cores.
WORKERS ?= 4

# Keep compiled bytecode, because the tests run hundreds of programs that import the same packages.
unexport PYTHONDONTWRITEBYTECODE

# The demo uses the full environment if it exists, so that no target removes packages of another.
FULL := $(VENV)/.full
DEMO := $(if $(wildcard $(FULL)),$(FULL),$(VENV)/.demo)
DOCS := $(THREADS) PYTHONPATH=tests $(BIN)/python -m
# One thread for each library, because parallel tests with many threads are slower.
THREADS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
PYTEST := $(THREADS) $(BIN)/python -m pytest
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs

comma := ,
say = @printf '\033[1m== %s\033[0m\n' "$(1)"

.PHONY: help demo test whole format-check lint types unit fuzz docs-test site-test docs-update docs-format site browser redis \
	test-runners test-kills bench-runners serve java test-object-store test-container bench bench-gpu bench-peers \
	bench-pages format lock clean
.DEFAULT_GOAL := help

help: ## list all commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DEMO) ## classify handwritten digits with two models in one pipeline
	$(call say,examples/ab_test.py)
	@$(BIN)/python examples/ab_test.py

test: format-check lint browser redis ## run all checks and tests; required before each commit
	@$(MAKE) --no-print-directory --jobs 2 types whole

whole: $(FULL)
	$(call say,unit tests and doc tests)
	@$(PYTEST) --numprocesses $(WORKERS) --dist loadgroup --quiet

format-check: $(FULL)
	$(call say,format)
	@$(BIN)/ruff format --check --quiet . || { echo "To fix this, run make format."; exit 1; }

lint: $(FULL)
	$(call say,lint)
	@$(BIN)/ruff check --quiet .

types: $(FULL)
	$(call say,types)
	@$(BIN)/python -m mypy

unit: $(FULL) ## run the unit tests only
	$(call say,unit tests)
	@$(PYTEST) --numprocesses $(WORKERS) --quiet --ignore tests/docs

PRISM ?= $(shell command -v prism)
SELECTION = $(if $(FRESH),--fresh,--cached) $(if $(filter prism,$(RUNNER)),--prism "$(PRISM)") $(if $(CHANGED),--changed) $(addprefix --page ,$(PAGES))

fuzz: $(FULL) ## compare 10,000 random pipelines with a plain loop, and run the large profiles of other tests
	$(call say,random pipelines$(comma) hostile models$(comma) soak test)
	@HYPOTHESIS_PROFILE=thorough $(PYTEST) --numprocesses $(WORKERS) --quiet tests/test_random_pipelines.py \
		tests/test_hostile_models.py tests/test_soak.py tests/test_batch_invariance.py tests/test_input_fidelity.py \
		tests/test_output_fidelity.py tests/test_row_sources.py

docs-test: $(FULL) ## run the code on pages (PAGE=docs/batching.md; CHANGED=1: changed pages; FRESH=1: all code, in new interpreters)
	$(call say,doc tests)
	@$(PYTEST) $(if $(filter 1,$(words $(PAGES))),,--numprocesses $(WORKERS)) --quiet $(SELECTION) \
		tests/docs/test_pages.py tests/docs/test_notebooks.py

site-test: $(FULL) ## test the site in a browser (PAGE=docs/batching.md; CHANGED=1: changed pages; FRESH=1: all code, in new interpreters)
	$(call say,tests of the site)
	@$(PYTEST) $(if $(filter 1,$(words $(PAGES))),,--numprocesses $(WORKERS)) --quiet $(SELECTION) tests/docs/test_site.py

docs-update: $(FULL) ## update the outputs on pages (PAGE=docs/batching.md: one page)
	$(call say,outputs on pages)
	@$(DOCS) architecture
	@$(DOCS) docs.gallery
	@$(DOCS) docs.update $(PAGES)

docs-format: $(FULL) ## format the code on pages (PAGE=docs/batching.md: one page)
	$(call say,code on pages)
	@$(PYTEST) --quiet --update-examples $(addprefix --page ,$(PAGES)) -k formatted tests/docs/test_pages.py

# The page of runners shows the results of a run of everything.
RUNNERS := $(THREADS) PYTHONPATH=tests $(BIN)/python -m runners
PART := $(ONLY)$(FEATURES)
test-runners: $(FULL) ## run the same pipelines on all runners (ONLY="prism spark": these runners; FEATURES="stream rows": these features)
	$(call say,runners)
	@$(RUNNERS) $(if $(PART),,--json docs/assets/runners.json) $(if $(ONLY),--only $(ONLY)) \
		$(if $(FEATURES),--features $(FEATURES))
	@$(if $(PART),,$(RUNNERS).pages)

RUNS ?= 1
test-kills: $(FULL) ## kill workers and task managers of a Flink cluster (ONLY="stream": these pipelines; RUNS=10: ten times)
	$(call say,killed workers)
	@$(RUNNERS).kills --runs $(RUNS) $(if $(ONLY),--only $(ONLY),--json docs/assets/runner-kills.json)
	@$(if $(ONLY),,$(RUNNERS).checkpoints --json docs/assets/runner-checkpoints.json)
	@$(if $(ONLY),,$(RUNNERS).pages)

site: $(FULL) ## build the site into site/, with warnings as errors
	$(call say,site)
	@$(SITE) build --strict

browser: $(FULL)
	$(call say,browser for the tests of the site)
	@$(DOCS) docs.browser

redis: $(FULL)
	$(call say,Redis for the tests of caches)
	@PYTHONPATH=tests $(BIN)/python -m redis_server

serve: $(FULL) ## serve the site on localhost with live reload
	@$(SITE) serve --livereload --dirty $(if $(ADDRESS),--dev-addr $(ADDRESS))

java: $(FULL) ## run the example in Java, with a model in Python (needs Java 11 or later, and Maven)
	$(call say,examples/java)
	@$(BIN)/python examples/java/run.py

test-object-store: $(FULL) ## load models from an S3-compatible server, with failing requests (needs Go)
	$(call say,models on an S3-compatible server)
	@$(DOCS) object_store.server
	@PYTHONPATH=tests $(PYTEST) --quiet tests/object_store/suite.py

test-container: $(FULL) ## run the steps of the Dockerfile for workers in a new environment, and a pipeline in it
	$(call say,examples/container)
	@PYTHONPATH=tests $(PYTEST) --quiet tests/container/suite.py

# The workloads and rounds of a benchmark.
SELECTED = $(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS))
bench: $(FULL) ## run the benchmarks (ONLY="W3 W4": these workloads; ROUNDS=3: fewer rounds)
	$(call say,benchmarks)
	@PYTHONPATH=tests $(BIN)/python -m benchmarks --json $(BENCHMARKS) $(SELECTED)
	@$(MAKE) --no-print-directory bench-pages

bench-gpu: $(FULL) ## run the benchmarks on a GPU (DEVICE=cuda:1: another one; ONLY=images: these workloads; ROUNDS=1)
	$(call say,benchmarks on a GPU)
	@PYTHONPATH=tests $(BIN)/python -m benchmarks.gpu --json .cache/bench-gpu.json $(if $(DEVICE),--device $(DEVICE)) $(SELECTED)

bench-runners: $(FULL) ## measure images and token sequences on several runners (ONLY="prism flink-2": on these; ROUNDS=1)
	$(call say,benchmarks on runners)
	@$(RUNNERS).scale $(if $(ONLY),,--json docs/assets/runner-scale.json) $(SELECTED)
	@$(if $(ONLY),,$(RUNNERS).pages)

bench-peers: $(PEERS)/.installed ## compare with Ray Data, Spark, and Daft, in a separate environment (ONLY=W1; ROUNDS=1)
	$(call say,comparison with other engines)
	@PYTHONPATH=$(CURDIR)/tests $(PEERS)/bin/python -m benchmarks.peers --json .cache/bench-peers.json $(SELECTED)

bench-pages: $(FULL) ## update the tables and plots of the performance page from the saved measurements
	@PYTHONPATH=tests $(BIN)/python -m benchmarks.pages

format: $(FULL) ## format the code, and apply the automatic fixes of ruff
	$(call say,format)
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --fix --quiet .

LOCK := $(BIN)/python -m uv pip compile --quiet --universal --python-version 3.10 --no-annotate --no-header \
	pyproject.toml
lock: $(FULL) ## update the pinned versions in requirements/
	$(call say,pinned versions)
	@$(LOCK) --extra all --extra docs --extra test --output-file requirements/full.txt
	@$(LOCK) --extra sklearn --constraint requirements/full.txt --output-file requirements/demo.txt
	@$(LOCK) requirements/peers.in --extra sklearn --extra torch --extra transformers \
		--constraint requirements/full.txt --output-file requirements/peers.txt

clean: ## remove all generated files except the environment
	rm -rf site build dist .cache .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg $(PEERS)/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "No Python 3.10 or later with venv was found." \
		"Install it (for example, apt-get install python3 python3-venv), or run make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is too old:" \
		"Python 3.10 or later is required. To use another interpreter, run make PYTHON=python3.12"; exit 1; }
	$(call say,$(@D): new environment with $(PYTHON))
	@$(PYTHON) -m venv $(@D) || { rm -rf $(@D); echo "$(PYTHON) can't create a virtual environment." \
		"On Debian or Ubuntu, run apt-get install python3-venv"; exit 1; }

$(VENV)/.demo $(VENV)/.full: $(VENV)/.%: $(VENV)/pyvenv.cfg requirements/%.txt pyproject.toml
	$(call say,$(VENV): packages of requirements/$*.txt)
	@$(BIN)/python requirements/install.py $*
	@touch $@

$(PEERS)/.installed: $(PEERS)/pyvenv.cfg requirements/peers.txt pyproject.toml
	$(call say,$(PEERS): packages of requirements/peers.txt)
	@$(PEERS)/bin/python requirements/install.py peers
	@touch $@
