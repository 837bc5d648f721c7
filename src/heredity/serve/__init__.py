"""A run over HTTP, for its reader alone: the report page, and any feature that it does not hold."""
