"""What the gates make of a dataset: scores of every sample, how well they find mismatched texts, a report page."""
