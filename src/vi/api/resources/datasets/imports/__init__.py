"""``client.datasets.imports``: import sessions of datasets."""
