"""Cores of the nodes: messages in, messages out; no sockets, no processes, no waiting."""
