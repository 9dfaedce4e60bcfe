"""Timing claims, as programs that print them."""
