"""How long an upload takes: gradsense, Flower, and a plain TLS socket."""
