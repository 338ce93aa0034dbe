"""Contact sheets: a recording, and what its labels were made from, as a picture that shows it at a glance."""
