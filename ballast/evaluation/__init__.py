"""Full ranking, metrics and statistics."""
