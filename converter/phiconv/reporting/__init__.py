"""What became of a model, on one page: numbers are gathered, drawn, and written."""
