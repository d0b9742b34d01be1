"""One half-step: the posteriors of one side given the other. The fit and the fold-in both are this."""
