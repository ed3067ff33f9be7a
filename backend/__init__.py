"""What serves the trained models."""
