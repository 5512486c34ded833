"""Annotations of images."""
