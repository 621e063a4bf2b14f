"""Write a text with LM and store, and say whom it owes what."""

import sys

import knnstore

prompt = sys.argv[1] if len(sys.argv) > 1 else "The standard type hierarchy"
store = knnstore.open()
generation = store.generate(
    prompt, 24, sampling=knnstore.Sampling(0.7, top_p=0.9, seed=0), joined=store.joined(lambda_=0.6)
)
print(prompt, end="", flush=True)
for token in generation:
    print(token.text, end="", flush=True)
print("\n")

owed = max(generation.tokens, key=lambda token: token.store_share)
passage = generation.cited(owed)
if passage is not None:
    print(f"{owed.token_id} {owed.text!r}: {owed.store_share:.0%} from the store, most by {passage.document}")
result = generation.attribution
for share in result.documents[:3]:
    print(f"{share.share:6.1%}  {share.document}")
print(f"{result.lm:6.1%}  the LM")
