"""Handwritten digits, learned by nodes that each see a different mix of them."""
