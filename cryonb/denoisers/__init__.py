"""Everything that is compared with the diffusion model, and the table that compares."""
