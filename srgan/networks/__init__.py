"""The generators as PyTorch modules, ours and those of others, and their weights read safely; needs torch."""
