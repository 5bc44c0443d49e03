"""CPU scheduling: the mechanism, and one file a policy."""
