"""What `make run` starts: the whole mesh on one machine, from pip alone. `python -m launch --help` tells the rest."""
