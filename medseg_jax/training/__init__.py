"""Batches of patches, from the cache on disk to the training step."""
