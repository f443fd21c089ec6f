# Development of qsm. `make` lists the targets.

SEED ?= 0
BASE ?= HEAD~1
RUNS ?= runs
PAPER ?= results/paper
TEST_ARGS ?= -n 2 --dist worksteal
TRAIN_ARGS ?= --steps 25_000 --random-steps 2_000 --eval-interval 2_500

VENV := .venv
BIN := $(VENV)/bin
# The JAX build: cpu, cuda or tpu. Once set up, the choice stays until another is named.
ACCELERATOR ?= $(or $(patsubst $(VENV)/ready-%,%,$(firstword $(wildcard $(VENV)/ready-*))),cpu)
EXTRAS_cpu := dev,mjx,cluster
EXTRAS_cuda := dev,mjx,cluster,cuda
EXTRAS_tpu := dev,mjx,cluster,tpu
READY := $(VENV)/ready-$(ACCELERATOR)
# Interpreters to try, best first: names on the PATH may be stubs that fail, hence also where pyenv keeps them.
PYENV := $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions
PYTHONS := $(or $(PYTHON),python3.12 python3.11 python3 python \
	$(wildcard $(PYENV)/3.12*/bin/python3) $(wildcard $(PYENV)/3.11*/bin/python3))

# A PYTHON of another version than that of .venv sets up anew.
OTHER_PYTHON := false
ifdef PYTHON
ifneq ($(shell { $(PYTHON) --version; } 2>&1),$(shell { $(BIN)/python --version; } 2>/dev/null))
OTHER_PYTHON := true
.PHONY: $(READY)
endif
endif

# Prints OK where an interpreter serves, or else what it lacks.
define PROBE
import sys
if not (3, 11) <= sys.version_info[:2] < (3, 13):
    sys.exit(print("is Python %d.%d" % sys.version_info[:2]))
try:
    import venv, ensurepip
except ImportError:
    sys.exit(print("lacks the venv module: apt install python%d.%d-venv" % sys.version_info[:2]))
print("OK")
endef
export PROBE

.DEFAULT_GOAL := help
.PHONY: help setup train test faults mutants speed paper lint format clean

help:
	@echo "make setup     create .venv with the pinned dependencies (ACCELERATOR=cpu|cuda|tpu, PYTHON=...)"
	@echo "make train     set up, then train a QSM agent on cartpole-swingup (SEED=0, RUNS=runs, TRAIN_ARGS=...)"
	@echo "make test      set up, then run the tests (TEST_ARGS=...)"
	@echo "make faults    set up, then inject faults into trainings and count what was survived (FAULTS_ARGS=--quick)"
	@echo "make mutants   set up, then plant faults in the code and list those that no test finds (MUTANTS_ARGS=\"--files agents/sac.py --sample 30\")"
	@echo "make speed     set up, then compare how fast this checkout trains with another commit (BASE=HEAD~1, SPEED_ARGS=\"--agents sac\")"
	@echo "make paper     set up, then run what is quick of the QSM paper: docs/paper.md (PAPER=results/paper)"
	@echo "make lint      check style (ruff) and types (pyright)"
	@echo "make format    rewrite the code in the project's style"
	@echo "make clean     remove .venv and caches; runs stay"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(if $(EXTRAS_$(ACCELERATOR)),:,echo "make: ACCELERATOR is '$(ACCELERATOR)'; it must be cpu, cuda or tpu" >&2; exit 1)
	@set -e; \
	tried=; found=; \
	for candidate in $(PYTHONS); do \
	    answer=$$("$$candidate" -c "$$PROBE" 2>/dev/null) || answer="does not run"; \
	    if [ "$$answer" = OK ]; then found=$$candidate; break; fi; \
	    tried="$$tried, $$candidate $$answer"; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "make: no Python serves ($${tried#, }). Install Python 3.12 or 3.11 with its venv module," \
	        "or name one: make setup PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	fi; \
	if ! [ -e $(READY) ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1 || $(OTHER_PYTHON); then \
	    echo "[1/3] Creating .venv with $$("$$found" --version) for $(ACCELERATOR)"; \
	    rm -rf $(VENV); \
	    "$$found" -m venv $(VENV); \
	fi; \
	echo "[2/3] Installing the pinned packages (about 1 GB; one to five minutes, in silence)"; \
	pip="$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt"; \
	{ $$pip setuptools && $$pip --no-build-isolation --editable '.[$(EXTRAS_$(ACCELERATOR))]'; } || { \
	    echo "make: the installation failed, see above. Check the network and the disk, then: make setup" >&2; exit 1; }; \
	rm -f $(VENV)/ready-*; \
	touch $(READY); \
	echo "[3/3] Ready: try $(BIN)/qsm --help"

train: setup
	@$(BIN)/qsm train qsm-clean cartpole-swingup --seed $(SEED) --runs $(RUNS) $(TRAIN_ARGS)

# Bytecode is kept, also where the environment forbids it: each process would compile every test file anew.
test: setup
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest $(TEST_ARGS)

faults: setup
	@$(BIN)/python -m tests.faults $(FAULTS_ARGS)

mutants: setup
	@$(BIN)/python -m tests.mutants $(MUTANTS_ARGS)

speed: setup
	@$(BIN)/python scripts/compare_speed.py $(BASE) $(SPEED_ARGS)

# Each part names the time that it takes on a free core, about.
paper: setup
	@echo "[1/6] Equation 20 in gridworlds, solved exactly: Figure 2 (seconds)"
	@$(BIN)/python scripts/paper/gridworld.py --output $(PAPER)
	@echo "[2/6] Theorems 4.1 and 4.3 where Q is known, and equation 1 in steps (half a minute)"
	@$(BIN)/python scripts/paper/theory.py --output $(PAPER)
	@echo "[3/6] The score of qsm and qsm-clean against grad Q along training (two minutes)"
	@$(BIN)/python scripts/paper/alignment.py --output $(PAPER)
	@echo "[4/6] Samplers down fewer steps against exact targets, and what an action costs (a minute)"
	@$(BIN)/python scripts/paper/samplers.py --output $(PAPER)
	@echo "[5/6] Three seeds of td3 in gridworld-open (a minute; a second time nothing is left to do)"
	@$(BIN)/qsm train td3 gridworld-open --name paper --num-seeds 3 --steps 6000 --random-steps 1000 --eval-interval 2000 \
	    --hidden-sizes 64,64 --batch-size 64 --discount 0.9 --wandb disabled --runs $(RUNS)
	@echo "[6/6] Their critics against dynamic programming (seconds)"
	@$(BIN)/python scripts/paper/gridworld_learned.py $(RUNS)/dm_control/gridworld-open/td3@paper/seed_[012] \
	    --output $(PAPER)/gridworld_learned.csv
	@echo "Written to $(PAPER), the runs to $(RUNS)/dm_control/gridworld-open; docs/paper.md says what each file shows"

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
