"""The graph service: people and who follows whom."""
