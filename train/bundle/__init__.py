"""From corpora to a bundle and its model card."""
