"""Many pictures: which file becomes which, how each is made, and what is told of it."""
