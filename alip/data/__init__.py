"""Reading shards: format, index, order, augmentation, decoding, batches."""
