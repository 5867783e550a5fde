"""How an image comes about, and back: conventions, rotations, CTF, projection, reconstruction."""
