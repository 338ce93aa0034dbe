"""Node processes: one module each, around the cores, and the runtime that they share."""
