"""Zero-shot retrieval, zero-shot classification and linear probe."""
