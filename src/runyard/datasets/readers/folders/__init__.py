"""Image folders without tables: a text per image, or a folder per class."""
