"""cryonb: learn to denoise cryo-EM particle images, from atoms to an FSC curve."""

__version__ = "0.1.0"
