"""``knnstore repair``: rebuild damaged files from copies, the LM or the corpus, and verify the result."""
