"""Datasets: annotated images, with imports, versions and exports."""
