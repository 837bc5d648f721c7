"""What features mean: explanations in words, who gives them, and how well they predict the activations."""
