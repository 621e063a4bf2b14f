"""What people already have: memmaps of other toolkits in, memmaps, Parquet and faiss indexes out."""
