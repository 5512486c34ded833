"""``client.datasets.imports``: files on their way into a dataset."""
