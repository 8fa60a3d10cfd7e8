"""Voxtral checkpoints: where they are, loading, adapting, saving."""
