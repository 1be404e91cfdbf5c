"""Grading: whether an answer is right, decided on untrusted text within limits."""
