"""Perplexity of a text by an LM of transformers, alone and joined to a store: two lines around your own code."""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import knnstore
from knnstore.lm.spec import SHIPPED_MODELS

folder = sys.argv[1] if len(sys.argv) > 1 else SHIPPED_MODELS / "wiki-lm"
model = AutoModelForCausalLM.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
text = "A class definition is an executable statement. The inheritance list usually gives a list of base classes."
ids = tokenizer(tokenizer.bos_token + text, return_tensors="pt").input_ids


@torch.inference_mode()
def perplexity() -> float:
    """exp of the mean −ln p a token; the loss of an attached LM is the mixture's."""
    return float(model(ids, labels=ids).loss.exp())


store = knnstore.open()
print(f"alone            {perplexity():10.2f}")
with knnstore.attach(model, store) as attached:
    print(f"with {store.name:12}{perplexity():10.2f}   {attached}, {attached.source}")
print(f"detached         {perplexity():10.2f}")
