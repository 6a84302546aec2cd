# Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/quick
# Processes that test: more than two cores have, as those that start a cluster mostly wait for it. A file is one's, with
# its fixtures: there can be one SLURM at a time. (Under pytest 9.2, pytest-xdist 3.8 overlooks its own mark xdist_group.)
TESTERS ?= 5

.PHONY: demo test test-slow test-cluster chaos campaign publish web graph lint lint-pages lock clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,all,dev]'
	touch $@

# The main job on the embedded data: the ablation table, the figures, what many trials agree on, a student of that
# exported, and images sorted with it.
demo: .venv/installed
	$(BIN)/stdac-grid launch quick --backend local --out $(RUN)
	$(BIN)/stdac-grid results $(RUN) --figures $(RUN)/figures
	$(BIN)/stdac export "$$($(BIN)/stdac-grid best $(RUN) --method student)" $(RUN)/model.onnx
	$(BIN)/stdac cluster $(RUN)/model.onnx digits -o $(RUN)/clusters.parquet --gallery $(RUN)/gallery.html

test: .venv/installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(TESTERS) --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed
	$(BIN)/python -m pytest -m "slow and not cluster"

# A real SLURM and a real Ray of four nodes each, on this machine, the long tests too.
test-cluster: .venv/installed
	$(BIN)/python -m pytest -m cluster

# The hours that nobody waits for: what is not finished in results/, at the lowest priority, one thread a trial, until it
# is stopped; it goes on from the last epochs. Each grid has as many of the cores. make publish writes what there is to
# results/, unfinished trials marked.
CAMPAIGN ?= paper-narrow methods-cpu
SHARE = $(shell n=$$(( $$(nproc) / $(words $(CAMPAIGN)) )); echo $$(( n > 1 ? n : 1 )))
DATA ?= $(if $(STDAC_DATA),$(STDAC_DATA),$(wildcard ../shared/data))
campaign: .venv/installed
	-echo 19 > /proc/$$$$/autogroup 2> /dev/null; \
	for grid in $(CAMPAIGN); do \
	    nice -n 19 $(BIN)/stdac-grid work runs/$$grid --grid $$grid --without results/$$grid \
	        --workers $(SHARE) --threads 1 $(if $(DATA),--data-dir $(DATA)) & \
	done; wait

publish: .venv/installed
	for grid in $(CAMPAIGN); do $(BIN)/python -m analysis.publish runs/$$grid results/$$grid || exit 1; done

# Kill what can be killed while a grid runs, then compare with an undisturbed one: make chaos BACKEND=ray N=50 SEED=1
# LIGHT=1: with trials that only pretend to train, many more faults in the same time
BACKEND ?= local
N ?= 50
SEED ?= 0
chaos: .venv/installed
	$(BIN)/python -m tests.chaos --backend $(BACKEND) --faults $(N) --seed $(SEED) $(if $(LIGHT),--light)

# onnxruntime-web for stdac page, from npm, beside the page's files: a wheel built after it needs no npm.
web: .venv/installed
	$(BIN)/python -m export.web fetch

# The graph of packages in docs/design.md, from the imports in the code.
graph: .venv/installed
	$(BIN)/python -m docs.graph

lint: .venv/installed lint-pages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# eslint and tsc for the JavaScript of the gallery and the page.
lint-pages:
	@if ! npm --version > /dev/null 2>&1; then \
	    echo "there is no npm: the pages' JavaScript is not checked"; \
	elif ! $(MAKE) --silent export/node_modules/installed; then \
	    echo "npm could not install eslint and tsc (for Node.js 20.19 or newer): the pages' JavaScript is not checked"; \
	else \
	    npm --prefix export run --silent lint && npm --prefix export run --silent types; \
	fi

export/node_modules/installed: export/package.json export/package-lock.json
	cd export && npm ci --loglevel=error --no-audit --no-fund --ignore-scripts
	touch $@

# Write constraints.txt anew from the newest versions that pyproject.toml allows.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet '.[cpu,all,dev]' 'torch==2.13.0'
	( echo '# The versions that the tests ran with; make lock writes this file.'; \
	  .venv-lock/bin/python -m pip freeze --exclude stdac | sed 's/+cpu//' ) > constraints.txt
	rm -rf .venv-lock

clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache export/node_modules
