"""Rec shards: format, building, reading."""
