"""The bi-path model: open_clip's towers without padding, its configurations, and weights in and out."""

from alip.model.bi_path import create_model

__all__ = ["create_model"]
