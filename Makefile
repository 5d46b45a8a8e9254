## make setup      .venv and what the book needs in it
## make book       everything from nothing: set up .venv, run each chapter once, build _build/html
## make pdf        the book, printed: _build/small-language-models.pdf, by a Chromium
## make test       lint, unit tests, the book, the chapters as a reader runs them, the site in a browser
## make lab        open JupyterLab on the chapters
## make cluster    a Dask scheduler and two workers on this machine, to try runs on a cluster; Ctrl-C ends them
## make ways-in    try set-up and build as they go wrong for people: copied, moved, half full, oddly named (minutes)
## make soak       the tests of faults at length: hundreds of kills, thousands of damaged files (minutes)
## make bench      how fast slmlib is here (ten minutes, of a machine that does nothing else)
## make clean      remove what was built (make distclean: .venv as well)
##
## Variables: PYTHON=python3.12 (when .venv is made), WORKERS=2 (chapters at once), CELL_TIMEOUT=600 (seconds a cell),
## LOCK= (newest allowed versions instead of requirements.lock), TORCH='torch==2.13.0' (what is asked of pip first).
## Environment: SLMLIB_BUDGET, SLMLIB_COMPILE, SLMLIB_DATA, SLMLIB_SEED, CHROMIUM: see README.md.

.PHONY: help setup book pdf test lab cluster ways-in soak bench clean distclean
.NOTPARALLEL:

help:
	@sed -n 's/^## \{0,1\}//p' Makefile

# Variables, of the command line too, reach the script by the environment, whatever characters are in them.
setup book pdf test lab cluster ways-in soak bench clean distclean:
	@command -v "$${PYTHON:-python3}" > /dev/null || { \
	  echo "make: there is no '$${PYTHON:-python3}' here. Name a Python 3.11 or newer: make $@ PYTHON=python3.12" >&2; exit 1; }
	@"$${PYTHON:-python3}" .ci/make.py $@
