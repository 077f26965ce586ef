"""ALIP: image-text pre-training that weighs noisy web pairs with synthetic captions (ICCV 2023)."""

__version__ = "0.3.0"
