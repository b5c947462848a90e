"""Building blocks that know nothing of recommendation tasks: precision, layers, embeddings, the item table."""
