"""What runs a generator, and how a picture of any size goes through it."""
