# The two commands of the README are `make run` and `make test`; both create the environment first.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
WORKDIR ?= runs/digits-simkd

.PHONY: run test test-long lint numerics parity torch mutations digits-table fashion-search fashion-table \
	together-search together-table digits-together cross-search cross-table claims claims-quick claims-search claims-why faults \
	budget bench accelerator-check dry-run lock clean

run: $(INSTALLED)
	$(BIN)/python experiments/train.py --config configs/digits.py:simkd --workdir $(WORKDIR)

test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# The tests that would not fit into ten minutes with the others.
test-long: $(INSTALLED)
	$(BIN)/python -m pytest -m long -n auto --dist loadfile --no-loadscope-reorder tests

# What happens to runs that are interrupted, damaged or starved, as a table.
faults: $(INSTALLED)
	$(BIN)/python experiments/faults.py --output experiments/results/faults.md

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The table of the README: every method on digits over five seeds (about twenty minutes).
digits-table: $(INSTALLED)
	$(BIN)/python experiments/compare.py --config configs/digits.py --workdir runs/digits-compare --output experiments/results/digits.md

# Every loss and every method's update, compiled in float32, against float64 at every batch size from 1
# to 17 (about half an hour).
numerics: $(INSTALLED)
	$(BIN)/python -m pytest -m numerics -n auto tests/numerics

# How many values of the published code ours agrees with, by method, and how closely, by model.
parity: $(INSTALLED)
	$(BIN)/python -m pytest tests/test_golden.py tests/test_golden_models.py --float32 -n auto

# With PyTorch itself: a teacher that a plain script trained is as good here. An installed 2.13.0 of any
# build is used as it is. Else pip takes the CPU build (200 MB) from PyTorch's own index or from a folder
# that pip knows (PIP_FIND_LINKS); where neither is found, the usual registry's build, which for Linux
# has CUDA with it (3 GB). The first line is for torch alone: an index out of reach is waited for once.
TORCH := torch==2.13.0
CPU_BUILDS := https://download.pytorch.org/whl/cpu
define install_torch
	$(BIN)/pip install -qq --retries 1 --no-deps --extra-index-url $(CPU_BUILDS) $(TORCH)
	$(BIN)/pip install --quiet $(TORCH)
endef

torch: $(INSTALLED)
	$(install_torch)
	$(BIN)/python -m pytest tests/with_torch -s

# Breaks the losses on purpose, one way at a time: which test notices? (about ten minutes)
mutations: $(INSTALLED)
	$(BIN)/python -m tests.mutate --output tests/mutations.md

LABELLED_AB := ab/second_label_weight=1.0/second_kd_weight=0.0
SEARCHED := kd,fitnets/weight=100.0,fitnets/weight=10.0,fitnets/two_stage=True/weight=100.0,at/weight=1000.0,at/weight=100.0,gradient_at,nst/weight=50.0,nst/weight=5.0,ft/weight=500.0,ft/weight=50.0,ab,$(LABELLED_AB),fsp,rkd/weight=1.0,rkd/weight=0.1,simkd
COMPARED := kd,fitnets,fitnets/two_stage=True/weight=100.0/learning_rate=0.1,at,gradient_at,nst,ft,$(LABELLED_AB),fsp,rkd,simkd

# By the validation split of seed 0: learning rates, and whether the published weight or a tenth of
# it (of ab: soft targets or labels in its second stage). About half an hour.
fashion-search: $(INSTALLED)
	$(BIN)/python experiments/compare.py --config configs/fashion_mnist.py --workdir runs/fashion --methods $(SEARCHED) --rates 0.1,0.4 --seeds 1 --one_teacher --set nonfinite=rollback --output experiments/results/fashion_search.md

# Every offline method on Fashion-MNIST with 100 labels per class, over five seeds (about an hour).
fashion-table: $(INSTALLED)
	$(BIN)/python experiments/compare.py --config configs/fashion_mnist.py --workdir runs/fashion --methods $(COMPARED) --one_teacher --output experiments/results/fashion.md

# Methods without a trained teacher on Fashion-MNIST with 100 labels per class. First their learning
# rates, by the validation splits of seeds 0 and 1 (about twenty minutes) ...
TOGETHER := $(BIN)/python experiments/compare.py --config configs/fashion_mnist.py --workdir runs/together --every_predictor
EXITS := $(BIN)/python experiments/compare.py --config configs/fashion_mnist.py --set student.model=msdnet_small --workdir runs/exits --every_predictor --methods multi_exit
together-search: $(INSTALLED)
	$(TOGETHER) --methods one,byot,dml --rates 0.1,0.4 --seeds 2 --output experiments/results/together_search.md
	$(EXITS) --rates 0.1,0.4 --seeds 2 --output experiments/results/exits_search.md

# ... then every network of each at the rate that was best, over five seeds (about an hour). The exits
# of an MSDNet learn from the labels alone, or from its last exit, too.
together-table: $(INSTALLED)
	$(TOGETHER) --methods one,byot,dml,dml/models=student+resnet14_w8,born_again --rates 0.4 --output experiments/results/together.md
	$(EXITS) --rates 0.4 --output experiments/results/exits.md

# The same methods on digits, at the recipe's rate of 0.1 (about ten minutes).
digits-together: $(INSTALLED)
	$(BIN)/python experiments/compare.py --config configs/digits.py --workdir runs/digits-together --methods dml,one,byot,born_again,multi_exit/weight=0.0/label_weight=1.0,multi_exit --every_predictor --output experiments/results/digits_together.md

# A ResNet taught by networks of other kinds, each trained once: a MobileNetV2 on Fashion-MNIST, a vision
# transformer on digits. First the learning rates, by seed 0's validation split ...
MOBILE := $(BIN)/python experiments/compare.py --config configs/fashion_mnist.py --workdir runs/cross-mobilenetv2 --one_teacher --set teacher.model=mobilenetv2,teacher.epochs=3
VIT := $(BIN)/python experiments/compare.py --config configs/digits.py --workdir runs/cross-vit --one_teacher --set teacher.model=vit_tiny_p2,teacher.epochs=60,teacher.optimizer=adamw,teacher.learning_rate=0.002,teacher.weight_decay=0.05
cross-search: $(INSTALLED)
	$(MOBILE) --methods kd,at,simkd --rates 0.1,0.4,1.6 --seeds 1 --output experiments/results/cross_mobilenetv2_search.md
	$(VIT) --methods kd,at,simkd --rates 0.1,0.3 --seeds 1 --output experiments/results/cross_vit_search.md

# ... then each method at its best, over three seeds (half an hour with the search).
cross-table: $(INSTALLED)
	$(MOBILE) --methods kd,at,simkd/learning_rate=1.6 --rates 0.4 --seeds 3 --output experiments/results/cross_mobilenetv2.md
	$(VIT) --methods kd,at/learning_rate=0.1,simkd --rates 0.3 --seeds 3 --output experiments/results/cross_vit.md

# The papers' claims, each tried on real data over five seeds or six (an hour on two cores); in short, to
# show that everything runs; and the choice of hyperparameters, by validation.
CLAIMS := $(BIN)/python experiments/claims.py
claims: $(INSTALLED)
	$(CLAIMS) --workdir runs/claims --output experiments/results

claims-quick: $(INSTALLED)
	$(CLAIMS) --workdir runs/claims-quick --quick

claims-search: $(INSTALLED)
	$(CLAIMS) --workdir runs/claims --search --output experiments/results

# Looks into what was contradicted, by validation.
claims-why: $(INSTALLED)
	$(CLAIMS) --workdir runs/claims --why --output experiments/results

# Prediction under a budget by the first seed's MSDNet of `make together-table`.
budget: $(INSTALLED)
	$(BIN)/python experiments/budget.py --run runs/exits/seed0/multi_exit,rate=0.4 --output experiments/results/budget.md

# Full-scale configs without their data and accelerators: every method of every pair of the published
# tables lowered for TPU and CUDA, and two updates on noise. Two images a time would leave
# a ResNet-110 whose features are too large for two of the losses.
DRY_RUN := $(BIN)/python experiments/dry_run.py --configs configs/cifar100.py,configs/imagenet.py --workdir runs/dry-run
dry-run: $(INSTALLED)
	$(DRY_RUN) --batch_size=16 --only='(fsp|ft)@resnet110-resnet32$$'
	$(DRY_RUN) --output experiments/results/dry_run.md

# Our times over others', measured side by side: of losses, steps, whole runs and cohorts; FLOPs over
# the fewest. PyTorch and torchdistill are for this alone (its other dependencies are not needed).
bench: $(INSTALLED)
	$(install_torch)
	$(BIN)/pip install --quiet --no-deps torchdistill==1.1.5
	$(BIN)/python experiments/bench.py --output experiments/results/bench.json
	$(BIN)/python experiments/bench_profiles.py --output experiments/results/bench_profiles.md

# Parity and property tests and the step of a ResNet-32x4 and 8x4 on the GPUs or TPUs that are here,
# if any; with jax's own package for them in .venv, as the README says.
accelerator-check: $(INSTALLED)
	$(BIN)/python experiments/accelerator_check.py

$(INSTALLED): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --requirement requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# Renews requirements.txt: the newest versions that pyproject.toml admits, pinned.
lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check ".[experiments,test]"
	echo "# Written by 'make lock' from pyproject.toml; for Python 3.11." > requirements.txt
	build/lock/bin/pip freeze --exclude jaxkd-distillation >> requirements.txt

clean:
	rm -rf $(VENV) build *.egg-info
