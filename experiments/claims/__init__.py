"""The claims of the paper, each an object that says beforehand how it will be decided."""
