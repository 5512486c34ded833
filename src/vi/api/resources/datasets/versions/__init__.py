"""``client.datasets.versions``: what a dataset held at one moment."""
