# Full-scale configs without their data and accelerators: every method of every pair of the published
# tables, lowered for TPU and CUDA, and two updates on noise (about three hours).

.PHONY: dry-run

DRY_RUN := $(BIN)/python experiments/studies/dry_run/dry_run.py \
	--configs configs/cifar100.py,configs/imagenet.py --workdir runs/dry-run

# With two images an update, the features of a ResNet-110 become too large for two of the losses.
dry-run: $(INSTALLED)
	$(DRY_RUN) --batch_size=16 --only='(fsp|ft)@resnet110-resnet32$$'
	$(DRY_RUN) --output experiments/studies/dry_run/results/dry_run.md
