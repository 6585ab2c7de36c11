# Tables of methods on digits and on Fashion-MNIST with 100 labels per class. A "search" target chooses
# learning rates and weights by validation; the target after it uses what was chosen.

.PHONY: digits-table fashion-search fashion-table together-search together-table digits-together \
	cross-search cross-table budget

TABLES := experiments/studies/tables/results
COMPARE := $(BIN)/python experiments/compare.py
COMPARE_DIGITS := $(COMPARE) --config configs/digits.py
COMPARE_FASHION := $(COMPARE) --config configs/fashion_mnist.py

# Every offline method on digits over five seeds (about twenty minutes).
digits-table: $(INSTALLED)
	$(COMPARE_DIGITS) --workdir runs/digits-compare --output $(TABLES)/digits.md

LABELLED_AB := ab/second_label_weight=1.0/second_kd_weight=0.0
SEARCHED := kd,fitnets/weight=100.0,fitnets/weight=10.0,fitnets/two_stage=True/weight=100.0,at/weight=1000.0,at/weight=100.0,gradient_at,nst/weight=50.0,nst/weight=5.0,ft/weight=500.0,ft/weight=50.0,ab,$(LABELLED_AB),fsp,rkd/weight=1.0,rkd/weight=0.1,simkd
COMPARED := kd,fitnets,fitnets/two_stage=True/weight=100.0/learning_rate=0.1,at,gradient_at,nst,ft,$(LABELLED_AB),fsp,rkd,simkd

# By seed 0's validation split: learning rates, and the published weight or a tenth of it (of ab: soft
# targets or labels in its second stage). About half an hour.
fashion-search: $(INSTALLED)
	$(COMPARE_FASHION) --workdir runs/fashion --methods $(SEARCHED) --rates 0.1,0.4 --seeds 1 --one_teacher --set nonfinite=rollback --output $(TABLES)/fashion_search.md

# Every offline method on Fashion-MNIST over five seeds (about an hour).
fashion-table: $(INSTALLED)
	$(COMPARE_FASHION) --workdir runs/fashion --methods $(COMPARED) --one_teacher --output $(TABLES)/fashion.md

# Methods without a trained teacher: their learning rates, by the validation splits of seeds 0 and 1
# (about twenty minutes) ...
TOGETHER := $(COMPARE_FASHION) --workdir runs/together --every_predictor
EXITS := $(COMPARE_FASHION) --set student.model=msdnet_small --workdir runs/exits --every_predictor --methods multi_exit
together-search: $(INSTALLED)
	$(TOGETHER) --methods one,byot,dml --rates 0.1,0.4 --seeds 2 --output $(TABLES)/together_search.md
	$(EXITS) --rates 0.1,0.4 --seeds 2 --output $(TABLES)/exits_search.md

# ... and every network of each at the best rate, over five seeds (about an hour). The exits of an
# MSDNet learn from the labels alone, or also from its last exit.
together-table: $(INSTALLED)
	$(TOGETHER) --methods one,byot,dml,dml/models=student+resnet14_w8,born_again --rates 0.4 --output $(TABLES)/together.md
	$(EXITS) --rates 0.4 --output $(TABLES)/exits.md

# The same methods on digits, at the recipe's rate of 0.1 (about ten minutes).
digits-together: $(INSTALLED)
	$(COMPARE_DIGITS) --workdir runs/digits-together --methods dml,one,byot,born_again,multi_exit/weight=0.0/label_weight=1.0,multi_exit --every_predictor --output $(TABLES)/digits_together.md

# A ResNet with teachers of other architectures, each trained once: a MobileNetV2 on Fashion-MNIST, a
# vision transformer on digits. First the learning rates, by seed 0's validation split ...
MOBILE := $(COMPARE_FASHION) --workdir runs/cross-mobilenetv2 --one_teacher --set teacher.model=mobilenetv2,teacher.epochs=3
VIT := $(COMPARE_DIGITS) --workdir runs/cross-vit --one_teacher --set teacher.model=vit_tiny_p2,teacher.epochs=60,teacher.optimizer=adamw,teacher.learning_rate=0.002,teacher.weight_decay=0.05
cross-search: $(INSTALLED)
	$(MOBILE) --methods kd,at,simkd --rates 0.1,0.4,1.6 --seeds 1 --output $(TABLES)/cross_mobilenetv2_search.md
	$(VIT) --methods kd,at,simkd --rates 0.1,0.3 --seeds 1 --output $(TABLES)/cross_vit_search.md

# ... then each method at its best rate, over three seeds (half an hour with the search).
cross-table: $(INSTALLED)
	$(MOBILE) --methods kd,at,simkd/learning_rate=1.6 --rates 0.4 --seeds 3 --output $(TABLES)/cross_mobilenetv2.md
	$(VIT) --methods kd,at/learning_rate=0.1,simkd --rates 0.3 --seeds 3 --output $(TABLES)/cross_vit.md

# Prediction under a budget, with the first seed's MSDNet of `make together-table`.
budget: $(INSTALLED)
	$(BIN)/python experiments/budget.py --run runs/exits/seed0/multi_exit,rate=0.4 --output $(TABLES)/budget.md
