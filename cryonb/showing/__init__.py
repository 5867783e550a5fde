"""Figures: plots that notebooks share, the viewer of frames, surfaces, curves, the sphere."""
