"""Photographs four times larger, by SRGAN (Ledig et al. 2017)."""
