# `make demo` shows what the project does, on real data; `make test` shows that it works.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= runs/demo

.PHONY: demo peers fuzz test slow check lint types rooms pytest clean

# One environment for everything, made on first use and renewed when what it is made from changes.
.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Trains from scratch each time: whatever an earlier demo left in $(DEMO) is replaced.
demo: .venv/installed
	$(BIN)/python -m experiments.train demo --out $(DEMO) --overwrite
	$(BIN)/python experiments/spectrum_analysis.py $(DEMO)/runs/*-lr0.1-trial00 --out $(DEMO)/analysis \
		--map layer --batch-mode sample --probe-size 4 --layers blocks.0 blocks.7 blocks.15 --at-steps 0 60
	$(BIN)/python -m figures $(DEMO)
	$(BIN)/python -m experiments.summary $(DEMO)
	rm -rf $(DEMO)/verify
	$(BIN)/python -m experiments.verify pl-along-training mnist-speed-order spectrum-explains-speed --out $(DEMO)/verify

# Libraries that benchmarks and tests/diagnostics/test_kernel_peers.py compare with. They name torchvision as a dependency
# and do without it, so theirs are left out.
peers: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps \
		nngeometry curvlinops-for-pytorch backpack-for-pytorch unfoldNd linear_operator

test: lint types rooms pytest

# Before each commit: with a few tests of each room, chosen to take seconds.
FAST := tests/test_front.py tests/models/test_shortcuts.py tests/figures/drawing \
	$(addprefix tests/experiments/,config claims/verdict/test_pairs.py data/test_batches.py records/test_directory.py \
		training/test_networks.py) \
	$(addprefix tests/diagnostics/,test_measure.py test_spectrum.py tables/test_rows.py \
		kernel/test_result.py linalg/test_bidiagonalization.py loss/test_descent.py monitoring/test_schedule.py \
		networks/test_capture.py theory/test_statement.py)
check: lint types rooms
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 $(FAST)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy and import-linter read files instead of importing: these links show them the package as it is installed.
TREE := .venv/tree
.PHONY: tree
tree: .venv/installed
	mkdir -p $(TREE)/skip_conditioning
	ln -sfn $(addprefix $(CURDIR)/,$(wildcard skip_conditioning/*.py*) skip_conditioning/py.typed diagnostics models experiments figures) \
		$(TREE)/skip_conditioning

types: tree
	cd $(TREE) && ../bin/mypy --config-file $(CURDIR)/setup.cfg

rooms: tree
	cd $(TREE) && ../bin/lint-imports --config $(CURDIR)/setup.cfg

# Threads of linear algebra would only be in each other's way.
pytest: .venv/installed
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal -m "not slow"

# What `make test` leaves out: kills, interrupts, compilation, jobs and workers of their own, all layouts of a user's folder, every
# subcommand in a fresh environment, the theory's quick check.
slow: .venv/installed
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal -m slow

# Some thousand damaged files and odd inputs, counted; other seeds: python -m tests.fuzz --seed N.
fuzz: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz

clean:
	rm -rf .venv runs build *.egg-info .*_cache .hypothesis
