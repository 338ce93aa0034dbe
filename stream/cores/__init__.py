"""Pure cores: messages in, messages out; no sockets, processes or sleep."""
