"""An adapter of PEFT, trained on: python examples/peft_adapter.py MODEL ADAPTER OUT.

The adapter's own matrices are what is trained, so they are what can be frozen: here the half with the largest values.
"""

import sys

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from cpift import Region, freeze

model_folder, adapter_folder, out = sys.argv[1:]
texts = ["question: 2 + 2 answer: 4", "question: 3 + 5 answer: 8"]  # yours

tokenizer = AutoTokenizer.from_pretrained(model_folder)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), adapter_folder, is_trainable=True)
trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
middle = torch.cat([p.detach().abs().flatten() for p in trained.values()]).median()
chosen = {n: np.flatnonzero((p.detach().abs() > middle).flatten().numpy()).astype(np.int32) for n, p in trained.items()}
region = Region({n: at for n, at in chosen.items() if len(at)}, total=sum(p.numel() for p in trained.values()))
optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
with freeze(model, region, optimizer) as frozen:
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"{frozen.count} elements frozen, {frozen.changed()} of them changed")
model.save_pretrained(out)
