# make demo and make test are all a newcomer needs; both set up .venv on the way. `make help` lists every target.
PYTHON ?= python3
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup demo check test test-slow bench format style stubborn rank-kills machine-kills chaos chaos-postgresql kill-server power-cuts \
  checkpoint-cuts notice starve faults-nth fuzz-api fuzz-datasets backup-property defects formats families \
  vi-inference own-images export-smollm2 howtos bench-import bench-requests bench-ranks bench-train bench-tiny \
  bench-memory bench-join bench-saving bench-weights bench-first-step bench-data bench-sdk-start gpu-check \
  bench-server bench-pages sim sim-kept sim-rules sim-postgresql availability reconnects screenshots budgets \
  queue-properties bench-queue

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Create .venv with everything that development needs
	@scripts/setup

demo: setup ## Train a model and show its answers
	@.venv/bin/runyard demo

check: setup ## Check formatting, lints, types, import contracts and style limits
	@scripts/check

test: check ## Run the checks, then the test suite
	@scripts/test

test-slow: setup ## Run the tests that make test leaves out
	@scripts/test -m slow

format: setup ## Format the code and apply safe lint fixes
	@.venv/bin/ruff format --quiet . && .venv/bin/ruff check --quiet --fix .

style: setup ## Print how the code and the docs read, as figures
	@scripts/style-report

# Faults; docs/chaos.md describes them.

stubborn: setup ## Kill 200 process trees that resist; about three minutes
	@scripts/stubborn

rank-kills: N = 200
rank-kills: setup ## Kill a rank of a run with three at random: N=200; half an hour
	@.venv/bin/python -m tests.chaos.rank_kills --times $(N)

machine-kills: N = 20
machine-kills: setup ## Kill a whole machine while three train: N=20; ten minutes
	@.venv/bin/python -m tests.chaos.machine_kills --times $(N)

FAULTS ?= 1000
SEED ?= 1
N ?= 100
chaos: setup ## Inject real faults into training instances: FAULTS=1000 SEED=1
	@scripts/chaos --faults $(FAULTS) --seed $(SEED)

chaos-postgresql: setup ## Inject the faults of make test-slow on PostgreSQL, which is killed as well
	@scripts/chaos --short --postgresql --seed $(SEED)

kill-server: setup ## Kill the server N=100 times during training
	@scripts/chaos --kill-server $(N)

power-cuts: setup ## Cut the power N=100 times while clients create runs
	@scripts/chaos --power-cuts $(N)

checkpoint-cuts: setup ## Cut the power N=100 times while checkpoints are saved
	@scripts/chaos --checkpoint-cuts $(N)

notice: setup ## Measure N=100 times how soon an ended process is noticed
	@scripts/chaos --notice $(N)

starve: setup ## Train for a minute while twice as many processes as cores spin
	@scripts/chaos --starve 60

SHARE ?= 1
faults-nth: setup ## Fail every n-th fsync, rename, open and write; SHARE=0.1 takes a tenth
	@scripts/chaos --nth $(SHARE) --seed $(SEED)

reconnects: setup ## Cut the connection of watchers 1,000 times while runs change, on both stores
	@RUNYARD_RECONNECTS=1000 scripts/test tests/server/test_reconnects.py -n 0

queue-properties: setup ## Judge the queue by brute force over 100,000 random events; half an hour
	@RUNYARD_QUEUE_EVENTS=100000 scripts/test tests/scheduling/test_queue_properties.py -n 0

budgets: setup ## Hold the pages to their budgets: 100,000 runs, a minute of training, 1,000 reconnects
	@RUNYARD_BUDGETS=1 scripts/test tests/browser/test_budgets.py -n 0 -m slow

availability: setup ## Keep the server available against silent sockets, long polls and slow bodies
	@RUNYARD_AVAILABILITY=1 scripts/test tests/server/test_availability.py -n 0 -s -k block_no_other_client -m slow

# Generated inputs.

EXAMPLES ?= 2000
fuzz-datasets: setup ## Read randomly broken files of every format: EXAMPLES=20000
	@RUNYARD_FUZZ_EXAMPLES=$(EXAMPLES) scripts/test tests/datasets/test_fuzz.py tests/datasets/test_accounting.py

backup-property: setup ## Verify and restore backups after generated requests, on both stores: EXAMPLES=500
	@RUNYARD_BACKUP_EXAMPLES=$(EXAMPLES) scripts/test tests/server/test_backup_property.py -n 2 -m "slow or not slow"

REQUESTS ?= 5000
fuzz-api: setup ## Send requests made from the OpenAPI document and validate the responses: REQUESTS=5000
	@scripts/setup-schemathesis
	@.venv/bin/python -m tests.fuzz.fuzz_api --requests $(REQUESTS)

ROWS ?= 100000
defects: setup ## Find seventy defects in many rows, and nothing else: ROWS=1000000
	@RUNYARD_DEFECT_ROWS=$(ROWS) scripts/test tests/datasets/test_defects.py -n 0 -s -m slow

formats: setup ## Import and export every dataset format by SDK and command line
	@RUNYARD_ALL_FORMATS=1 scripts/test tests/cli/test_formats.py -m "slow or not slow"

families: setup ## Freeze each part of every model family in turn
	@RUNYARD_ALL_FAMILIES=1 scripts/test tests/trainer/test_miniatures.py tests/trainer/test_families.py \
	  tests/trainer/test_reference_step.py tests/trainer/test_export.py -m "slow or not slow"

howtos: setup ## Follow every page that has commands as a reader would, the README with its trainings
	@RUNYARD_HOWTOS=1 scripts/test tests/test_howtos.py -m "slow or not slow"

export-smollm2: setup ## Export a training of SmolLM2's real weights, and reject a wrong merge; minutes
	@scripts/setup-smollm2
	@scripts/test tests/trainer/test_smollm2.py -n 0 -m slow

own-images: setup ## Train the empty flow on 2,000 questions about receipts; minutes
	@RUNYARD_TEST_QUESTIONS=2000 scripts/test tests/e2e/test_own_images.py -n 0 -m slow

vi-inference: setup ## Query our models with the published client's local inference; about a minute
	@RUNYARD_VI_INFERENCE=1 scripts/test tests/contract/test_published_inference.py -n 0

# Benchmarks; benchmarks/RESULTS.md has the results.

bench: setup ## Compare with other tools, as ratios from one run
	@scripts/bench

bench-requests: setup ## Compare the cost of a request with an earlier revision: ARGS="--base HEAD~1"
	@.venv/bin/python benchmarks/request_overhead.py $(ARGS)

COUNT ?= 50000
bench-import: setup ## Compare validating images with copying and hashing them: COUNT=50000
	@.venv/bin/python benchmarks/import_speed.py --count $(COUNT)

bench-memory: setup ## Compare predicted with measured peak memory: ARGS="--every 5 --ample"
	@.venv/bin/python benchmarks/memory_prediction.py $(ARGS)

gpu-check: setup ## Check every path of the trainer on this machine's accelerator: ARGS=--dry
	@.venv/bin/python scripts/gpu-check $(ARGS)

bench-ranks: setup ## Compare the steps of one process with the revision before ranks: ARGS="--rounds 7"
	@.venv/bin/python benchmarks/rank_overhead.py $(ARGS)

bench-first-step: setup ## Time until the first step on photographs: ARGS="--max-pixels null"
	@.venv/bin/python benchmarks/first_step.py $(ARGS)

bench-data: setup ## Measure encoding, bytes kept per image, and waiting for batches: ARGS="--images 5000"
	@.venv/bin/python benchmarks/data_path.py $(ARGS)

bench-train: setup ## Compare training steps with other loops: ARGS="--cases tiny --rounds 5"
	@.venv/bin/python benchmarks/train_speed.py $(ARGS)

bench-tiny: setup ## Train the tiny model on each built-in dataset, three splits; about 12 minutes
	@.venv/bin/python benchmarks/tiny_learns.py $(if $(JSON),--json $(JSON))

bench-sdk-start: setup ## Compare the start of the SDK with the published client's: ARGS="--rounds 15"
	@scripts/setup-vi-sdk && .venv/bin/python benchmarks/sdk_start.py $(ARGS)

bench-join: setup ## Time from an invitation to the first step on a new machine: ARGS="--rounds 5"
	@.venv/bin/python benchmarks/join_speed.py $(ARGS)

bench-weights: setup ## Compare ways to store weights in 16 bits by the loss: ARGS="--case fine-tuning"
	@.venv/bin/python benchmarks/weight_precision.py $(ARGS)

bench-queue: setup ## Placements per second of a million waiting runs on 10,000 machines: ARGS="--queued 100000"
	@.venv/bin/python -m benchmarks.scheduling_speed $(ARGS)

bench-server: setup ## Compare requests a second with MLflow's server; needs wrk: ARGS="--rounds 3"
	@scripts/setup-mlflow && .venv/bin/python benchmarks/server_vs_mlflow.py $(ARGS)

bench-pages: setup ## Measure what the pages cost with 100,000 runs, in Chromium: ARGS="--rounds 3"
	@.venv/bin/python benchmarks/pages_cost.py $(ARGS)

bench-saving: setup ## Measure how long a checkpoint pauses training: ARGS="--cases medium --rounds 5"
	@.venv/bin/python benchmarks/saving_pause.py $(ARGS)

# The simulation of the run protocol; docs/run-safety.md describes it.

EVENTS ?= 10000000
FIRST ?= 0
sim: setup ## Simulate the run protocol with faults: EVENTS=10000000 FIRST=0
	@.venv/bin/python -m tests.sim.simulate --events $(EVENTS) --first $(FIRST) --processes 2

sim-kept: setup ## Replay the seeds that once found a bug
	@RUNYARD_KEPT_SEEDS=1 scripts/test tests/sim/test_simulation.py -k once_found_a_bug

sim-rules: setup ## Leave out each rule in turn and report which seeds notice
	@.venv/bin/python -m tests.sim.simulate --rules --processes 2

sim-postgresql: setup ## Simulate the run protocol on PostgreSQL
	@.venv/bin/python -m tests.sim.simulate --postgresql --events 200000 --first $(FIRST)

screenshots: setup ## Write the images of the pages in docs/images; trains for some minutes, needs Chromium
	@scripts/test -n 0 tests/browser/screenshots.py
