"""Every model on every data set, and runs that are killed at random moments: `make soak`."""
