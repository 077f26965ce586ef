"""Synthetic captions for a set of images."""
