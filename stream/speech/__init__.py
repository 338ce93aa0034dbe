"""Voice activity, endpointing and speech recognition."""
