"""What a fitted model is: rows folded in from histories, whatever it was fitted to."""
