"""A plain loop: python examples/plain_loop.py MODEL REGION OUT. REGION is a file of cpift protect or cpift identify."""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cpift import Region, freeze

model_folder, region_file, out = sys.argv[1:]
texts = ["question: 2 + 2 answer: 4", "question: 3 + 5 answer: 8"]  # yours

model = AutoModelForCausalLM.from_pretrained(model_folder)
tokenizer = AutoTokenizer.from_pretrained(model_folder)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
with freeze(model, Region.load(region_file), optimizer) as frozen:
    for _ in range(3):
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    print(f"{frozen.count} elements frozen, {frozen.changed()} of them changed")
model.save_pretrained(out)
tokenizer.save_pretrained(out)
