"""Particles made by code: clean, with structural noise, with white noise, and whole data sets."""
