"""Node processes around the cores, one module each, and the runtime that they share."""
