"""Assets: the images of a dataset."""
