"""Datasets: pictures and what is said of them, how they come in, in which versions they stand, and how they go out."""
