"""Training: corpora → features → face encoder, word vectors, fusion → a bundle that ``stream`` runs. Needs torch."""
