## make book       everything from nothing: set up .venv, run each chapter once, build _build/html
## make test       lint, unit tests, the book, the chapters as a reader runs them, the site in a browser
## make lab        open JupyterLab on the chapters
## make clean      remove what was built (make distclean: .venv as well)
##
## Variables: PYTHON=python3.12 (when .venv is made), WORKERS=2 (chapters at once), CELL_TIMEOUT=600 (seconds a cell),
## LOCK= (newest allowed versions instead of requirements.lock), TORCH='torch==2.13.0' (what is asked of pip first).
## Environment: SLMLIB_BUDGET, SLMLIB_DATA, SLMLIB_SEED, CHROMIUM: see README.md.

PYTHON ?= python3
LOCK ?= requirements.lock
TORCH ?= $(shell sed -n '/^torch==/p' requirements.lock)
WORKERS ?= 2
CELL_TIMEOUT ?= 600
BIN := .venv/bin

# Kernels start in another folder, so a relative SLMLIB_DATA must become absolute here.
ifneq ($(SLMLIB_DATA),)
export SLMLIB_DATA := $(if $(filter /% ~%,$(SLMLIB_DATA)),$(SLMLIB_DATA),$(CURDIR)/$(SLMLIB_DATA))
endif
export SLMLIB_BUDGET SLMLIB_SEED

.PHONY: help setup book test lab clean distclean FORCE
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@sed -n 's/^## \{0,1\}//p' Makefile

# The files made here change only when what they list changes. A step that depends on one runs when content changed,
# was added or was removed; dates do not matter.
keep-if-same = cmp -s $@ $@.new && rm $@.new || mv $@.new $@
checksums = find $(wildcard $(1)) -type f ! -name '*.pyc' ! -path '*/.*' | LC_ALL=C sort | tr '\n' '\0' | xargs -0 cksum

.venv/.wanted: FORCE
	@mkdir -p .venv
	@{ echo "$(LOCK) $(TORCH)"; cat requirements.txt pyproject.toml $(LOCK); } > $@.new; $(keep-if-same)

.venv/.installed: .venv/.wanted
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not. Name one: make book PYTHON=python3.12" >&2; exit 1; }; \
	  $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet "$(TORCH)" -r requirements.txt \
	  $(if $(LOCK),-c $(LOCK),--upgrade --upgrade-strategy eager)
	@touch $@

setup: .venv/.installed

# What makes every chapter stale, and what makes the pages stale.
.run/common: FORCE | .venv/.installed
	@mkdir -p .run
	@{ echo "$(SLMLIB_BUDGET)|$(SLMLIB_DATA)|$(SLMLIB_SEED)"; cat .venv/.wanted; \
	  $(call checksums,slmlib results book/conftest.py); } > $@.new; $(keep-if-same)

.run/sources: FORCE .run/common
	@{ cat .run/common; $(call checksums,book _config.yml _toc.yml); } > $@.new; $(keep-if-same)

book: _build/html/.complete
	@echo "The book is in _build/html/index.html"
	@! grep -q 'This page ran on python-docs' .run/book/*.ipynb || \
	  echo "Some chapters ran on the stand-in corpus, since theirs could not be had; to try again: make clean book"

# A copy of the book is run, so the notebooks in book/ stay without outputs. Chapters that did not change are taken
# from .run/ran, where each lies as it ran. The longest comes first. xargs rather than pytest-xdist, since that lets a
# waiting chapter queue behind a long one. The site is built aside and moved into place whole.
_build/html/.complete: .run/sources
	@rm -rf _build/html .run/book .run/glued .run/_build
	@cmp -s .run/common .run/ran/common || rm -rf .run/ran
	@mkdir -p .run/ran && cp .run/common .run/ran/common
	@cp -R book _config.yml _toc.yml .run/
	@cd .run/book && for n in $$(ls -r *.ipynb); do \
	  if cmp -s $$n ../ran/$$n.source && [ -f ../ran/$$n ]; then cp ../ran/$$n $$n; \
	  else rm -f ../ran/$$n; cp $$n ../ran/$$n.source; echo $$n; fi; done > ../stale
	@OMP_NUM_THREADS=1 TQDM_DISABLE=1 xargs -P $(WORKERS) -I {} sh -c '$(RUN-ONE)' run {} < .run/stale
	$(BIN)/jupyter-book build .run -W -n --keep-going --quiet > .run/sphinx.log
	@mkdir -p _build && mv .run/_build/html _build/html && touch $@

RUN-ONE = if $(BIN)/python -m pytest --nbmake --overwrite --nbmake-timeout=$(CELL_TIMEOUT) -p no:cacheprovider \
  .run/book/$$1 > .run/ran/$$1.log 2>&1; then cp .run/book/$$1 .run/ran/$$1; echo "$$1  $$(tail -n 1 .run/ran/$$1.log)"; \
  else cat .run/ran/$$1.log; exit 1; fi

test: .run/tested
	@echo "All tests have passed on what is here."

.run/everything: FORCE .run/sources
	@{ cat .run/sources; $(call checksums,tests .ci Makefile README.md LICENSE CITATION.cff environment.yml .gitignore); \
	  } > $@.new; $(keep-if-same)

.run/tested: .run/everything
	$(BIN)/ruff check slmlib tests book
	$(BIN)/ruff format --check slmlib tests book
	$(BIN)/python -m pytest tests --ignore=tests/test_site.py
	@$(MAKE) --no-print-directory book
	@$(call checksums,book) > .run/before
	OMP_NUM_THREADS=1 SLMLIB_BUDGET=smoke $(BIN)/python -m pytest --nbmake book/
	@$(call checksums,book) | cmp - .run/before || { echo "Running the chapters changed files in book/" >&2; exit 1; }
	@for b in "$$CHROMIUM" chromium chromium-browser google-chrome; do command -v "$$b" > /dev/null && exit; done; \
	  $(BIN)/python -m playwright install chromium || true
	SLM_SITE=required $(BIN)/python -m pytest tests/test_site.py
	@touch $@

lab: .venv/.installed
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) book

clean:
	rm -rf .run _build build dist *.egg-info .pytest_cache .ruff_cache slmlib/__pycache__ tests/__pycache__ book/__pycache__

distclean: clean
	rm -rf .venv
