"""How good a model is: bits per byte beside n-grams, and accuracy on multiple-choice items."""
