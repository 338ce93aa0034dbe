"""Voice activity, utterance bounds and speech recognition."""
