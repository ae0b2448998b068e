"""Floor 2: text in, batches out: corpora, mixes, shards, packing, the loader and its baselines."""
