"""Machine learning for trading; see `ml/README.md`."""
