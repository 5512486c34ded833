# make demo and make test are all a newcomer needs; both set up .venv on the way.
PYTHON ?= python3
export PYTHON

.PHONY: stubborn demo test check bench setup format

setup:
	@scripts/setup

demo: setup
	@.venv/bin/runyard demo

check: setup
	@scripts/check

test: check
	@scripts/test

bench: setup
	@scripts/bench

format: setup
	@.venv/bin/ruff format --quiet . && .venv/bin/ruff check --quiet --fix .

# End 200 process trees that do not want to end; about three minutes.
stubborn: setup
	@scripts/stubborn
