"""Which output is mine: what there is to choose from, what it costs, and what the words mean."""
