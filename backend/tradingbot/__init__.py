"""The service that loads and serves trained agents; its engine and web parts arrive with later versions."""
