"""Tar shards in: WebDataset."""
