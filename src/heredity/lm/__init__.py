"""Language models: made, loaded, trained, merged and judged."""
