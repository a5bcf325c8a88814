"""Tokenizers: what one is, whatever files it came from, and text to token ids and back."""
