# Batchmill: everything a newcomer or CI runs. Needs python3 >= 3.11 with venv, make and a package index.

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TWO := --numprocesses=2 --dist=worksteal
MAKEFLAGS += --jobs=2

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench docs reference faults faults-crashpoints screenshots clean lock

help: ## Say what there is.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: .venv/setup ## Make .venv with batchmill, the built-in engine and the openai client in it.

demo: setup ## Run a real batch on the built-in model and print the results.
	@$(BIN)/python examples/demo.py

test: check .venv/postgres .venv/faults .venv/clients .venv/browser .venv/nginx ## Install what the tests need, and run them all.
	$(BIN)/pytest tests/spec tests/schedule $(TWO) --cov=batchmill.spec --cov=batchmill.schedule --cov-branch \
	  --cov-report=term:skip-covered --cov-fail-under=100
	$(BIN)/pytest --ignore=tests/spec --ignore=tests/schedule $(TWO) -m "not alone" -rs --durations=10
	$(BIN)/pytest -m alone -rs --durations=10

check: .venv/test ## Lint, types and walls; a part of `make test`.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/test reference ## Build the documentation's site into site/.
	$(BIN)/zensical build --clean --strict

reference: .venv/test ## Make docs/reference of the code again.
	$(BIN)/python tools/reference.py

faults: .venv/test $(if $(GROUND),.venv/postgres) ## Storms of faults with fresh seeds, then planted bugs: SEED=… MINUTES=… GROUND=… (see tests/faults).
	PYTHONPATH=tests $(BIN)/python -m faults --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED)) $(if $(GROUND),--ground $(GROUND))

faults-crashpoints: .venv/test .venv/faults ## Every crash point on ext4 and XFS: a quarter of an hour.
	PYTHONPATH=tests $(BIN)/python -m faults.crashpoints --enter --filesystem ext4 xfs --mode kill power eio

bench: .venv/test .venv/postgres .venv/bench ## Measure everything again (half an hour), or ONLY="validation clients"; see docs/performance.md.
	$(BIN)/python bench $(ONLY)

screenshots: .venv/test .venv/browser ## Take the pictures of the dashboard in docs/images anew.
	$(BIN)/python tools/screenshots.py

clean: ## Remove what these commands made, but not batchmill-data.
	rm -rf .venv demo-results .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage

lock: ## Pin every package anew, to what the index gives today.
	rm -rf .venv && : > constraints.txt && $(MAKE) .venv/test .venv/bench
	$(BIN)/python -m pip freeze --exclude-editable --exclude batchmill > constraints.txt

# Debian splits venv and libgomp off: say so in one sentence, before pip or the engine says it in twenty.
.venv/base:
	@command -v $(PYTHON) >/dev/null || { echo "python3 (3.11 or newer) is missing: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: install a newer one, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "python3's venv is missing: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null || { echo "libgomp is missing, which the built-in engine needs: apt-get install libgomp1"; exit 1; }
	$(PYTHON) -m venv .venv
	@# 25.1 is the first pip with dependency groups. It is also the first thing asked of the package index.
	$(PIP) install "pip>=25.1" || { echo "pip gets nothing from a package index (see above): connect this machine, or set PIP_INDEX_URL"; exit 1; }
	@touch $@

.venv/setup: .venv/base pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable ".[builtin,bucket,demo,postgres]"
	@touch $@

.venv/test: .venv/setup
	$(PIP) install --constraint constraints.txt --editable ".[builtin,bucket,convert,demo,otel,postgres,ray]" --group test
	@touch $@

# Whoever asks apt for something waits for the one before (behind the |): two at a time would fail on apt's own lock.
# The store's tests run on a real PostgreSQL and a real pgbouncer, which they start themselves.
.venv/postgres: .venv/base
	@(export PATH=$$PATH:/usr/sbin; ls /usr/lib/postgresql/*/bin/postgres && command -v pgbouncer && command -v curl) >/dev/null 2>&1 || { \
	  [ "$$(id -u)" = 0 ] || { echo "The tests need PostgreSQL's server, pgbouncer and curl: apt-get install postgresql pgbouncer curl"; exit 1; }; \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql pgbouncer curl; }
	@touch $@

# The dashboard's tests and pictures need a browser: Debian's Chromium, and a font with Chinese in it.
.venv/browser: .venv/base | .venv/faults
	@command -v chromium >/dev/null || { \
	  [ "$$(id -u)" = 0 ] || { echo "The dashboard's tests need Chromium: apt-get install chromium"; exit 1; }; \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-inter fonts-wqy-microhei; }
	@touch $@

# A proxy of docs/scale.md is run: Debian's nginx, unpacked here, since its package would start a server on this machine.
.venv/nginx: .venv/base | .venv/browser
	@rm -rf $@ && mkdir $@
	@(export PATH=$$PATH:/usr/sbin; command -v nginx) >/dev/null || { cd $@ && \
	  { apt-get download -qq nginx 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get download -qq nginx; }; } && \
	  dpkg -x nginx_*.deb . && rm nginx_*.deb && usr/sbin/nginx -v 2>/dev/null; } || { \
	  rm -rf ../nginx; echo "The documents' proxy needs nginx: apt-get install nginx"; exit 1; }

# Crash points need small disks whose power can be cut, and a process held at a system call.
.venv/faults: .venv/base | .venv/postgres
	@(for tool in xfs_io mkfs.xfs mkfs.ext4 strace ip unshare; do command -v $$tool >/dev/null || exit 1; done) || { \
	  [ "$$(id -u)" = 0 ] || { echo "Some fault tests will not run: they need root, and xfsprogs e2fsprogs strace iproute2 util-linux"; exit 0; }; \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends xfsprogs e2fsprogs strace iproute2 util-linux; }
	@touch $@

# The clients that strangers have, each as they install it, beside the one that the tests use.
.venv/clients: .venv/base Makefile
	@rm -rf $@ && mkdir -p $@/node
	for version in 1.109.1 2.54.0; do $(PYTHON) -m venv $@/openai-$$version && \
	  $@/openai-$$version/bin/python -m pip --disable-pip-version-check --quiet install openai==$$version || exit 1; done
	@if command -v npm >/dev/null; then npm install --silent --no-audit --no-fund --prefix $@/node openai@6.49.0; \
	  else echo "The Node client's test will not run: npm is not installed"; fi
	@touch $@

# What figures stand beside: orjson, and the batch runners of others, each in a venv of its own.
.venv/bench: .venv/test Makefile
	@command -v cc >/dev/null || { echo "The benches' server needs a C compiler: apt-get install gcc libc6-dev"; exit 1; }
	$(PIP) install --constraint constraints.txt --group bench
	@rm -rf $@ && mkdir -p $@
	for runner in saturate==0.2.0 flexllm==0.17.10; do name=$${runner%%=*}; $(PYTHON) -m venv $@/$$name && \
	  $@/$$name/bin/python -m pip --disable-pip-version-check --quiet install $$runner || \
	  echo "bench/clients.py will not run $$name: the package index does not give it"; done
	@touch $@
