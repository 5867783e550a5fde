"""cryonb: learn to denoise cryo-EM particle images, from atoms to an FSC curve."""

__version__ = "0.1.0"

# The folders of the package: each may import from those before it.
ROOMS = ("base", "physics", "poses", "data", "evaluation", "simulation", "learning", "denoisers")
ROOMS += ("showing", "running", "commands")
