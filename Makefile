# make demo and make test are all a newcomer needs; both set up .venv on the way.
PYTHON ?= python3
export PYTHON

.PHONY: setup demo check test bench format stubborn chaos chaos-postgresql kill-server power-cuts checkpoint-cuts \
  notice starve faults-nth fuzz-api fuzz-datasets backup-property defects formats families vi-inference bench-import \
  bench-requests bench-train bench-tiny bench-memory bench-saving sim sim-kept sim-rules sim-postgresql availability

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

# The dozen faults of the default suite on PostgreSQL, which is killed as well.
chaos-postgresql: setup
	@scripts/chaos --short --postgresql --seed $(SEED)

kill-server: setup
	@scripts/chaos --kill-server $(N)

power-cuts: setup
	@scripts/chaos --power-cuts $(N)

checkpoint-cuts: setup
	@scripts/chaos --checkpoint-cuts $(N)

notice: setup
	@scripts/chaos --notice $(N)

starve: setup
	@scripts/chaos --starve 60

# Every n-th fsync, rename, open and write fails, in create, claim, save, finish, delete; SHARE=0.1 takes a tenth, as on
# every submission.
SHARE ?= 1
faults-nth: setup
	@scripts/chaos --nth $(SHARE) --seed $(SEED)

# Files of every format, broken by chance: make fuzz-datasets EXAMPLES=20000
EXAMPLES ?= 2000
fuzz-datasets: setup
	@RUNYARD_FUZZ_EXAMPLES=$(EXAMPLES) scripts/test tests/datasets/test_fuzz.py

# Backups after generated requests are verified and restored, on both stores: make backup-property EXAMPLES=500
backup-property: setup
	@RUNYARD_BACKUP_EXAMPLES=$(EXAMPLES) scripts/test tests/server/test_backup_property.py -n 2

# Requests made from the OpenAPI document, to a real server, and responses compared with it: make fuzz-api REQUESTS=5000
REQUESTS ?= 5000
fuzz-api: setup
	@scripts/setup-schemathesis
	@.venv/bin/python tests/fuzz/fuzz_api.py --requests $(REQUESTS)

# Seventy defects in many rows, each told and nothing else: make defects ROWS=1000000
ROWS ?= 100000
defects: setup
	@RUNYARD_DEFECT_ROWS=$(ROWS) scripts/test tests/datasets/test_defects.py -n 0 -s

# A sample of every format in, out in every format, and in again, by SDK and command line.
formats: setup
	@RUNYARD_ALL_FORMATS=1 scripts/test tests/cli/test_formats.py

# 2,100 silent sockets, 1,200 long polls of one key, 50 slow bodies: health and another key's reads within a second.
availability: setup
	@RUNYARD_AVAILABILITY=1 scripts/test tests/server/test_availability.py -n 0 -s -k keep_nobody_out

# Each part of every model family frozen in turn, beside what the default suite does with the families.
families: setup
	@RUNYARD_ALL_FAMILIES=1 scripts/test tests/trainer/test_miniatures.py tests/trainer/test_families.py \
	  tests/trainer/test_reference_step.py tests/trainer/test_export.py

# The published client's local inference, in an environment of its own, asks models of ours: about a minute when idle.
vi-inference: setup
	@RUNYARD_VI_INFERENCE=1 scripts/test tests/contract/test_published_inference.py -n 0

# What the checks of a request cost, compared with an earlier revision: make bench-requests ARGS="--base HEAD~1"
bench-requests: setup
	@.venv/bin/python benchmarks/request_overhead.py $(ARGS)

# Checking pictures beside copying and hashing them: make bench-import COUNT=50000
COUNT ?= 50000
bench-import: setup
	@.venv/bin/python benchmarks/import_speed.py --count $(COUNT)

# Predicted and measured peak memory of a grid of trainings: make bench-memory ARGS="--every 5 --ample"
bench-memory: setup
	@.venv/bin/python benchmarks/memory_prediction.py $(ARGS)

# Our steps of training beside other loops': make bench-train ARGS="--cases tiny --rounds 5"
bench-train: setup
	@.venv/bin/python benchmarks/train_speed.py $(ARGS)

# What the tiny model learns of each built-in dataset, on three splits, and how long that takes; about 12 minutes when idle.
bench-tiny: setup
	@.venv/bin/python benchmarks/tiny_learns.py $(if $(JSON),--json $(JSON))

# How long training stands still for a checkpoint: make bench-saving ARGS="--cases medium --rounds 5"
bench-saving: setup
	@.venv/bin/python benchmarks/saving_pause.py $(ARGS)

# The run protocol in a simulated world, see docs/run-safety.md: make sim EVENTS=10000000
EVENTS ?= 10000000
FIRST ?= 0
sim: setup
	@.venv/bin/python tests/sim/simulate.py --events $(EVENTS) --first $(FIRST) --processes 2

# The seeds that once found something.
sim-kept: setup
	@RUNYARD_KEPT_SEEDS=1 scripts/test tests/sim/test_simulation.py -k stays_good

# Leave each rule out in turn and say which seeds notice.
sim-rules: setup
	@.venv/bin/python tests/sim/simulate.py --rules --processes 2

sim-postgresql: setup
	@.venv/bin/python tests/sim/simulate.py --postgresql --events 200000 --first $(FIRST)
