"""Import memmaps of other toolkits; export memmaps, Parquet and faiss indexes."""
