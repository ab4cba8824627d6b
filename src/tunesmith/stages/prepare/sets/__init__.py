"""What is decided over all rows at once: splits, duplicates, leaks, mixtures; on columns of hashes, never on texts."""
