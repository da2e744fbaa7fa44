"""Quotient graphs of few clusters, their down-sets as bits, and how they are packed on chips."""
