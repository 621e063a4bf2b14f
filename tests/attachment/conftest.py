"""A store of the shipped LM, and that LM as a user of transformers loads it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import knnstore
from knnstore.lm.spec import SHIPPED_MODELS

WIKI = SHIPPED_MODELS / "wiki-lm"


@pytest.fixture(scope="session")
def store(built):
    return knnstore.open(built[0] / "books")


@pytest.fixture(scope="session")
def tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(WIKI)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@pytest.fixture(scope="session")
def loaded():
    return AutoModelForCausalLM.from_pretrained(WIKI, dtype=torch.float32).eval()
