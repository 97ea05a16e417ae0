"""CRIU itself, and its image files as Torpor rewrites them."""
