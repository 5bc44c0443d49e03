"""Xenstore: a tree of small values shared by all domains, with watches, transactions and permissions."""
