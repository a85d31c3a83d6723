"""TRL's GRPOTrainer: python examples/trl_grpo.py MODEL REGION OUT."""

import sys

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from cpift import FreezeCallback, Region

model_folder, region_file, out = sys.argv[1:]
rows = [{"prompt": "2 + 2 = "}, {"prompt": "3 + 5 = "}]  # yours


def reward(completions: list[str], **_: object) -> list[float]:
    """Yours: here, many different letters."""
    return [float(len(set(text))) for text in completions]


trainer = GRPOTrainer(
    model_folder,
    reward,
    GRPOConfig(
        out, max_steps=2, learning_rate=1e-3, num_generations=4, per_device_train_batch_size=4, max_completion_length=8,
        bf16=False, report_to="none", save_strategy="no", model_init_kwargs={"dtype": "float32"},
    ),
    Dataset.from_list(rows),
    callbacks=[FreezeCallback(Region.load(region_file))],
)  # fmt: skip
trainer.train()
trainer.save_model(out)
