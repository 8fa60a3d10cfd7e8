"""Learning: the Trainer, its callbacks and its checkpoints."""
