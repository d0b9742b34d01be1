# Everything a person or CI does with a checkout. `make setup` needs Python 3.11 to 3.14 and nothing else.
# The first of these that fits is used; PYTHON=/path/to/python chooses another.
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for python in $(CANDIDATES); do \
  "$$python" -c 'import ensurepip, venv; $(FITS)' 2>/dev/null && echo "$$python" && exit; done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup run test test-all prove coverage house release-check check bench peers neural docs wheels wheels-check manifests release sbom audit lock vendor clients pictures clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP): requirements/dev.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "foldin needs Python 3.11 or newer: install it, or say where it is with make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c '$(FITS)' || { echo "foldin needs Python 3.11 to 3.14, and $(PYTHON) is another: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: install its venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	-@$(BIN)/python -m featurestore.users.compiled
	@touch $(STAMP)

# exec: Ctrl-C goes to the stack alone, and its exit code is that of make.
run: setup
	@exec $(BIN)/foldin up $(ARGS)

# A commit's tests have an order of their own: another run of it, here or elsewhere, has the same.
ORDER := --randomly-seed=$(shell printf '%d' 0x$$(git rev-parse --short=7 HEAD 2>/dev/null || echo 1))

# The gate: some minutes, and only a defect can close it.
test: setup check
	$(BIN)/python -m pytest -n auto -m "not slow" $(ORDER) $(ARGS)

# Everything, and what is missing fails: both kinds of store, faults, whole stacks, containers, browsers, wheels, the neural engine.
test-all: setup check docs $(VENV)/supply/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'torch>=2.6'
	CI=true FOLDIN_TEST_NEURAL=1 $(BIN)/python -m pytest -n auto --store both $(ORDER) $(ARGS)

# The gate N times in a fresh clone, every second time on a busy machine.
N := 5
FROM := 1
prove:
	@.ci/prove $(N) $(FROM)

# What share of the product's lines the gate runs.
coverage: setup
	$(BIN)/python -m coverage run -m pytest -n auto -m "not slow" $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

# How large the product, its tests and its documents are; `make check` holds it to the bounds of .ci/house.json, which only fall.
house: setup
	@$(BIN)/python .ci/house.py

# Before a release. What is known against the packages is for a person to read: it stops nothing.
release-check: sbom manifests wheels-check
	-@$(MAKE) --no-print-directory audit

check: setup
	cd service/static/vendor && sha256sum --check --quiet SHA256SUMS
	$(BIN)/python .ci/dependencies.py
	$(BIN)/python .ci/rules.py
	$(BIN)/python .ci/house.py --check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup peers
	$(BIN)/foldin bench $(ARGS)

# What the benchmarks compare with. Where one has no wheel for this Python, its rows say that it was skipped.
peers: $(VENV)/.peers
$(VENV)/.peers: $(STAMP) requirements/bench.txt
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.txt
	@touch $@

# The neural engine and its tests; torch is 0.2 to 3 GB, so it is in no lock.
neural: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'torch>=2.6'
	FOLDIN_TEST_NEURAL=1 $(BIN)/python -m pytest tests/neural $(ARGS)

# The archive of sources, and the wheel that is built from it, in dist/.
wheels: setup
	$(BIN)/python -m build --no-isolation

# Builds the wheel and installs it into an empty environment of each Python that is here: it comes up, learns and goes.
wheels-check: setup
	@found=; for version in 3.11 3.12 3.13 3.14; do \
	  fits=; for python in python$$version "$$HOME"/.pyenv/versions/$$version.*/bin/python$$version; do \
	    "$$python" -c 'import ensurepip, venv' 2>/dev/null && fits=$$python && break; done; \
	  if [ -n "$$fits" ]; then found="$$found $$fits"; else echo "no Python $$version with venv: not checked"; fi; done; \
	[ -n "$$found" ] || exit 1; \
	FOLDIN_TEST_PYTHONS="$$found" $(BIN)/python -m pytest tests/packaging/test_wheel.py -v -p no:randomly $(ARGS) && \
	for python in $$found; do "$$python" -c 'import platform; print("the wheel runs with Python", platform.python_version())'; done

# The manual, which a service of this environment then has at /manual. What makes it is in an environment of its own,
# which has Foldin and its libraries too: the notebooks run there.
DOCS := $(VENV)/docs
MANUAL := $(VENV)/share/doc/foldin
$(DOCS)/.installed: requirements/docs.txt $(STAMP)
	$(BIN)/python -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/docs.txt
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

docs: $(DOCS)/.installed
	$(DOCS)/bin/sphinx-build -W --keep-going --quiet --fresh-env -d $(DOCS)/doctrees docs $(MANUAL)
	@echo "the manual is in $(MANUAL), and at /manual of a service of this environment"

# What a release is made of, as CycloneDX, and what is known against it: by tools in an environment of their own.
SUPPLY := $(VENV)/supply
$(SUPPLY)/.installed: requirements/supply.txt $(STAMP)
	$(BIN)/python -m venv $(SUPPLY)
	$(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/supply.txt
	@touch $@

sbom: $(SUPPLY)/.installed
	$(SUPPLY)/bin/python .ci/supply.py sbom dist/foldin.cdx.json

# The files for Kubernetes, held strictly against the schemas of its releases.
manifests: $(SUPPLY)/.installed
	$(SUPPLY)/bin/python .ci/manifests.py deploy/kubernetes/*.yaml deploy/kubernetes/cluster/*.yaml

# VERSION=1.2.3: from a clean tree the version and its changes, committed and tagged, and what is published, in dist/. Nothing is pushed.
release: setup
	$(BIN)/python .ci/release.py "$(VERSION)"

# For a person: what others publish tomorrow stops no release of today.
audit: $(SUPPLY)/.installed
	$(SUPPLY)/bin/pip-audit --require-hashes --disable-pip -r requirements/run.txt -r requirements/dev.txt

# The locks carry hashes and no registry addresses; numpy and scipy fork by Python version.
lock:
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 --no-header \
	  --extra telemetry pyproject.toml -o requirements/run.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 --no-header \
	  --extra evaluate --extra telemetry --group dev pyproject.toml requirements/build.in -o requirements/dev.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 --no-header \
	  --group bench --constraints requirements/dev.txt -o requirements/bench.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 --no-header \
	  --group supply -o requirements/supply.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 --no-header \
	  --extra evaluate --group docs --constraints requirements/dev.txt pyproject.toml requirements/build.in \
	  -o requirements/docs.txt

# What the pages are made with, for who changes versions; users and tests need no Node.
vendor:
	cd .ci/vendor && npm ci --silent && node bundle.mjs $(CURDIR)/service/static/vendor

# What the clients have of the description of the API, and the blocking client of the awaiting one.
clients: setup
	$(BIN)/python -m clients.generator

# The pictures of the dashboard in the documents, of a stack of their own; needs a Chromium.
pictures: setup
	$(BIN)/python .ci/pictures.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
