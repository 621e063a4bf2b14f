"""Change existing stores: remove documents, compact segments, merge stores, extract subsets."""
