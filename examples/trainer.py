"""transformers' Trainer: python examples/trainer.py MODEL REGION OUT."""

import sys

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from cpift import FreezeCallback, Region

model_folder, region_file, out = sys.argv[1:]
texts = ["question: 2 + 2 answer: 4", "question: 3 + 5 answer: 8"]  # yours

tokenizer = AutoTokenizer.from_pretrained(model_folder)
trainer = Trainer(
    AutoModelForCausalLM.from_pretrained(model_folder),
    TrainingArguments(out, max_steps=3, learning_rate=1e-3, weight_decay=0.1, report_to="none", save_strategy="no"),
    DataCollatorForLanguageModeling(tokenizer, mlm=False),
    [tokenizer(text) for text in texts],
    callbacks=[FreezeCallback(Region.load(region_file))],
)
trainer.train()
trainer.save_model(out)
