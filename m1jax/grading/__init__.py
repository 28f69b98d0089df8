"""Answers: when two of them are the same."""
