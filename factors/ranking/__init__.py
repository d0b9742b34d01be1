"""Which items a user chooses next: a model of who rated what, beside the model of the ratings."""
