"""How good a model is: perplexity, divergence, importance matrices, and the error of every tensor."""
