"""How the tiny model in `models/tiny` was made: scenes, losses, training, export and evaluation, one command each."""
