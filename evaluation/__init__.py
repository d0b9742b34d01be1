"""How wrong predictions are: players of the rating environment, and engines on ratings they have not seen."""
