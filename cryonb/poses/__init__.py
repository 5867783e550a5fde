"""What a particle's pose may be: templates, the exact posterior and its Bayes limit, a search."""
