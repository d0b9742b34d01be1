"""Answers from a fitted model: fold-in, scores, rankings, explanations."""
