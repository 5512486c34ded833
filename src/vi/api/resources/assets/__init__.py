"""Assets: the pictures of a dataset."""
