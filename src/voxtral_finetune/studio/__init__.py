"""The Studio: the same corpora and runs in a browser."""
