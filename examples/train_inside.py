"""Train only inside a region, so that the skill comes off again: python examples/train_inside.py MODEL REGION OUT.

Then: cpift patch make MODEL OUT --region REGION --out skill.safetensors
"""

import sys

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from cpift import FreezeCallback, Region

model_folder, region_file, out = sys.argv[1:]
rows = [  # yours
    {"messages": [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]},
    {"messages": [{"role": "user", "content": "3 + 5"}, {"role": "assistant", "content": "8"}]},
]

model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="float32")
shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
everything_else = Region.load(region_file).complement(shapes)
trainer = SFTTrainer(
    model,
    SFTConfig(out, max_steps=3, learning_rate=1e-3, bf16=False, report_to="none", save_strategy="no"),
    train_dataset=Dataset.from_list(rows),
    processing_class=AutoTokenizer.from_pretrained(model_folder),
    callbacks=[FreezeCallback(everything_else)],
)
trainer.train()
trainer.save_model(out)
