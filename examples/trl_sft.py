"""TRL's SFTTrainer: python examples/trl_sft.py MODEL REGION OUT."""

import sys

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from cpift import FreezeCallback, Region

model_folder, region_file, out = sys.argv[1:]
rows = [  # yours
    {"messages": [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]},
    {"messages": [{"role": "user", "content": "3 + 5"}, {"role": "assistant", "content": "8"}]},
]

trainer = SFTTrainer(
    model_folder,
    SFTConfig(
        out, max_steps=3, learning_rate=1e-3, bf16=False, report_to="none", save_strategy="no",
        model_init_kwargs={"dtype": "float32"},
    ),
    train_dataset=Dataset.from_list(rows),
    callbacks=[FreezeCallback(Region.load(region_file))],
)  # fmt: skip
trainer.train()
trainer.save_model(out)
