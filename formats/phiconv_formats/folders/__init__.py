"""What stands in a model folder beside the weights, read and written."""
