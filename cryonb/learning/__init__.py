"""The diffusion model, the U-Net behind it, their training, and the weights that are kept."""
