"""What comes in: molecules, maps, micrographs and particles, and the files that hold them."""
