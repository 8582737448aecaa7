"""Speculative decoding: trees, acceptance, caches and the loop that joins them."""
