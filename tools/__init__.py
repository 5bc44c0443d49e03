"""What the project needs around itself: fetching real guests, checks, benchmarks. None of it is installed."""
