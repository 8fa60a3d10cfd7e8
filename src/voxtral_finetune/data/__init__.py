"""Speech and text: decoding, corpora, splits, windows, batches."""
