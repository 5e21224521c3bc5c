"""What Pillow leaves out, a file format each: depth, pages, colours, and what their metadata says."""
