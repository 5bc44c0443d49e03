"""What `make bench` measures: each promise of SPECIFICATION.md that is a number, side by side in one run."""
