"""``client.datasets.versions``: immutable versions of datasets."""
