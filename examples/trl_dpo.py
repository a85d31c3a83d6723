"""TRL's DPOTrainer: python examples/trl_dpo.py MODEL REGION OUT. The reference model is frozen anyway."""

import sys

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from cpift import FreezeCallback, Region

model_folder, region_file, out = sys.argv[1:]
rows = [  # yours
    {"prompt": "2 + 2 = ", "chosen": "4", "rejected": "5"},
    {"prompt": "3 + 5 = ", "chosen": "8", "rejected": "7"},
]

trainer = DPOTrainer(
    model_folder,
    args=DPOConfig(
        out, max_steps=3, learning_rate=1e-3, bf16=False, report_to="none", save_strategy="no",
        model_init_kwargs={"dtype": "float32"},
    ),
    train_dataset=Dataset.from_list(rows),
    callbacks=[FreezeCallback(Region.load(region_file))],
)  # fmt: skip
trainer.train()
trainer.save_model(out)
