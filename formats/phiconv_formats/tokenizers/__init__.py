"""The tokenizer files of a model folder, read and written."""
