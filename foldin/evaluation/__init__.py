"""How wrong predictions are on ratings that were not seen: data sets, splits, engines, figures, pictures.

Nothing here talks to a server: predictors run in processes of their own, which see training ratings only.
"""
