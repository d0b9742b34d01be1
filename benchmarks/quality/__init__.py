"""How right the predictions are: of a whole deployment, and beside the goals."""
