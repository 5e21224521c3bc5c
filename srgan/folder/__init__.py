"""Many pictures: which file becomes which, how each is made, and what is told of it.

planning                     which file becomes which, before any work
making                       the one making of a file, for all front ends
desk, manifest               what is finished, what may be written, and what is known of it afterwards
batch, cluster, streams      who works: threads here, a Ray cluster, a pipe
watching                     a folder in which pictures appear
reporting                    what became of each file
"""
