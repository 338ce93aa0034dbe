"""Contact sheets: a picture that shows a recording, its labels and what they were made from at a glance."""
