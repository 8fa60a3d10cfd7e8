"""Measuring: transcription, word error rate, verdict."""
