"""The front door: `tradingbots VERB`, one file per verb."""
