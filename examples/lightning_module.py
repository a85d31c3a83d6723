"""Lightning: python examples/lightning_module.py MODEL REGION OUT. REGION is a file of cpift protect or cpift identify."""

import sys

import pytorch_lightning as lightning  # or: import lightning
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cpift import Region, freeze


class Language(lightning.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model.train()

    def training_step(self, ids):
        return self.model(input_ids=ids, labels=ids).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.1)


class Freeze(lightning.Callback):
    def on_train_start(self, trainer, module):
        self.context = freeze(module.model, Region.load(region_file), trainer.optimizers[0])
        self.context.__enter__()

    def on_train_end(self, trainer, module):
        self.context.__exit__(None, None, None)


model_folder, region_file, out = sys.argv[1:]
texts = ["question: 2 + 2 answer: 4", "question: 3 + 5 answer: 8"]  # yours
model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
batches = [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
loader = torch.utils.data.DataLoader(batches, batch_size=None)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
lightning.Trainer(max_epochs=3, callbacks=[Freeze()], **quiet).fit(Language(model), loader)
model.save_pretrained(out)
