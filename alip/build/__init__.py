"""Making shards: sources, images, texts and captions → rec files."""
