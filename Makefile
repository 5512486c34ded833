# make demo and make test are all a newcomer needs; both set up .venv on the way.
PYTHON ?= python3
export PYTHON

.PHONY: sim sim-rules sim-postgresql stubborn demo test check bench setup format chaos kill-server power-cuts

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

# Real faults, see docs/chaos.md: make chaos FAULTS=1000 SEED=1
FAULTS ?= 1000
SEED ?= 1
N ?= 100
chaos: setup
	@scripts/chaos --faults $(FAULTS) --seed $(SEED)

kill-server: setup
	@scripts/chaos --kill-server $(N)

power-cuts: setup
	@scripts/chaos --power-cuts $(N)

# The run protocol in a simulated world, see docs/run-safety.md: make sim EVENTS=10000000
EVENTS ?= 10000000
FIRST ?= 0
sim: setup
	@.venv/bin/python tests/sim/simulate.py --events $(EVENTS) --first $(FIRST) --processes 2

# Leave each rule out in turn and say which seeds notice.
sim-rules: setup
	@.venv/bin/python tests/sim/simulate.py --rules --processes 2

sim-postgresql: setup
	@.venv/bin/python tests/sim/simulate.py --postgresql --events 200000 --first $(FIRST)
