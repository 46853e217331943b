"""Reads BERT of transformers and of google-research/bert, and writes it for transformers."""
