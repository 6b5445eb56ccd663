# Everything works on a bare machine with Python 3.11: each target makes .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs site gauntlet clean
.DEFAULT_GOAL := test

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/ready  ## train the case study's run in small, audit it, correct it, audit again
	$(BIN)/fgclip-doctor demo

test: lint  ## everything that CI checks
	$(BIN)/python -m pytest -n 2

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/ready  ## rewrite what is generated: the pages of the rules, their table, and that of the faults
	$(BIN)/python scripts/rule_pages.py
	$(BIN)/python scripts/faults_table.py

site: .venv/ready  ## the documentation as a site, in build/site
	$(BIN)/python -m sphinx -W -n -q -b html docs build/site

gauntlet: .venv/ready  ## every planted fault and every sound run, a quarter of an hour; renews docs/gauntlet.md
	$(BIN)/python -m tests.gauntlet --jobs 2 --write

clean:
	rm -rf .venv
