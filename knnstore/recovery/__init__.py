"""``knnstore repair``: what is damaged is made again, from the copies, the LM or the corpus, and checked."""
