"""Pictures for training: found, packed into a cache, cut into patches, degraded; looked through before a run.

sources       which files, how often, and which LR belongs to which HR
cache         all of them as one packed, memory-mapped file
patches       random places of them as batches
degradation   HR to LR
check         what would spoil a run
preview       what a run will see
"""
