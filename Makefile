# Every target sets up what it needs; on a machine that has it all, `make` takes seconds.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
SYSTEM := PYTHON=$(PYTHON) deploy/system-packages.sh
SOURCES := fastside tests bench setup.py
APPS := tests/interop/apps

.PHONY: build demo test interop bench lint format fuzz clean
.DEFAULT_GOAL := build

# The command is .venv/bin/fastside. The package is installed in place, so only the extension module is ever rebuilt.
build: .venv/installed
	@$(BIN)/python setup.py -q build_ext --inplace

demo: build
	$(BIN)/fastside demo $(ARGS)

# ARGS are pytest's, for example ARGS="tests/test_config.py -x"
test: .venv/installed-dev build
	@$(SYSTEM) test
	$(BIN)/python -m pytest $(ARGS)
	@echo "left out: the tests with real Java, Node.js and Python SDKs; \`make interop\` runs them"

# Real SDKs through two sidecars, as root. ARGS are pytest's.
interop: .venv/installed-dev build .interop/java/built .interop/node/built .interop/python/built
	$(BIN)/python -m pytest tests/interop $(ARGS)

bench: .venv/installed-dev build
	@$(SYSTEM) bench
	$(BIN)/python -m pytest bench $(ARGS)

lint: .venv/installed-dev build
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint fastside

format: .venv/installed-dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# ARGS="bolt --seconds 600" for one parser, and longer
fuzz: .venv/installed-dev
	@$(SYSTEM) test
	$(BIN)/python tests/fuzz/run.py $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info fastside/*.so fastside/_core.c fastside/_core.html .fuzz .interop

.venv/bin/python:
	@$(SYSTEM) build
	$(PYTHON) -m venv .venv

# pip gets the build requirements first, because the extension is rebuilt in this environment later.
.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
		> .venv/build-requirements.txt
	$(BIN)/pip install -q -r .venv/build-requirements.txt
	FASTSIDE_CORE=0 $(BIN)/pip install -q --no-build-isolation -e .
	@touch $@

.venv/installed-dev: .venv/installed
	FASTSIDE_CORE=0 $(BIN)/pip install -q --no-build-isolation -e '.[dev]'
	@touch $@

# The applications of the interop tests.
.interop/java/built: $(shell find $(APPS)/java -type f)
	@$(SYSTEM) interop
	mvn -q -B -f $(APPS)/java package
	@touch $@

.interop/node/built: $(wildcard $(APPS)/node/*.json)
	@$(SYSTEM) interop
	@mkdir -p $(@D)
	cp $^ $(@D)
	npm ci --silent --prefix $(@D)
	@touch $@

.interop/python/built: $(APPS)/python/requirements.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/pip install -q -r $<
	@touch $@
