"""What the figures share: axes, selection of rows, smoothing, style, saving."""
