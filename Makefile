# What one can do here. `make help` prints this list.
.DEFAULT_GOAL := help
.PHONY: help run demo bench bench-growth bench-live bench-edge test soak lint protos stubs lock clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

help: ## print what one can do
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

run: .venv/installed ## start the mesh on embedded stores (FEEDMESH_HTTP_PORT, FEEDMESH_DATA_DIR; TLS=1); Ctrl-C stops it
	@FEEDMESH_TLS=$${FEEDMESH_TLS:-$(TLS)} exec $(BIN)/python -m launch --die-with-parent

demo: .venv/installed ## load a real social graph into the mesh (starting one if none runs), then drive it for a minute
	@exec $(BIN)/python -m bench.demo

bench: .venv/installed ## measure it: the mesh, the floor and the textbook side by side, into bench/results; 10 minutes
	@exec $(BIN)/python -m bench.suite

bench-growth: .venv/installed ## whether a feed read gets dearer from 10,000 users to 1,000,000
	@exec $(BIN)/python -m bench.growth

bench-live: .venv/installed ## 10,000 clients that are told live, and what a kill -9 does to them
	@exec $(BIN)/python -m bench.live

bench-edge: .venv/installed ## what limits cost, and what one user who goes beyond them does to another
	@exec $(BIN)/python -m bench.edge

test: .venv/installed .venv/checkov/installed ## everything that tests it: unit, contract, integration and end-to-end
	@$(BIN)/python -m pytest -n 2 --dist loadfile --ignore=tests/e2e
	@exec $(BIN)/python -m pytest -n 0 tests/e2e

soak: .venv/installed ## the test of feeds on other steps each time: FEEDMESH_SOAK_STEPS of them, 50,000 if not said
	@FEEDMESH_SOAK_STEPS=$${FEEDMESH_SOAK_STEPS:-50000} exec $(BIN)/python -m pytest -n 0 tests/integration/test_feed_machine.py

lint: .venv/installed ## formatting, lint, types, import contracts, contracts, and that generated code is current
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	rm -rf .venv/generated
	$(BIN)/python protos/generate.py --lint .venv/generated
	diff -r --exclude=__pycache__ .venv/generated/feedmesh feedmesh

protos: .venv/installed ## generate feedmesh/ from protos/
	rm -rf feedmesh
	$(BIN)/python protos/generate.py .

stubs: .venv/installed ## the package feedmesh/ as a wheel in dist/, for services that call the mesh
	$(BIN)/python -m build --wheel --no-isolation --outdir dist protos

lock: .venv/installed ## pin the dependencies of pyproject.toml in requirements.lock
	$(BIN)/pip-compile --quiet --all-extras --generate-hashes --strip-extras --allow-unsafe \
	    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header \
	    --output-file requirements.lock pyproject.toml
	$(BIN)/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --no-annotate \
	    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header \
	    --constraint requirements.lock --output-file requirements-run.lock pyproject.toml
	$(BIN)/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe \
	    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header \
	    --output-file requirements-checkov.lock requirements-checkov.in

clean: ## remove the virtual environment and caches (data in .data stays)
	rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The project itself is not installed: commands run from this folder. The stamp makes an interrupted install begin anew.
.venv/installed: requirements.lock
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

# What checks manifests, apart: it pins what it needs. After .venv, which clears the folder.
.venv/checkov/installed: requirements-checkov.lock .venv/installed
	$(PYTHON) -m venv --clear .venv/checkov
	.venv/checkov/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-checkov.lock
	@touch $@
