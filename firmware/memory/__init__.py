"""Memory: who owns each frame, what it may be used for, and the hypercalls that change either."""
