"""What a result is worth: errors, resolution, what was invented, the truth of real particles."""
