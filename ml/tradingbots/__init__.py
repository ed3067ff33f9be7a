"""The library: `core` (arithmetic), `data` (prices), `components` (environments, agents), `training` (loops, reports)."""
