"""Searching over an arm's stages."""
