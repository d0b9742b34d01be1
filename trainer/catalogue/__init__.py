"""The catalogue's items as the trainer reads them: for a fit, and for items that change between fits."""
